"""How the graphs of ``tools.prompting_graphs`` are shown."""

from __future__ import annotations

from tools.model_files import (
    CLIP_VISION_MODEL,
    DEV_MODELS,
    IP_ADAPTER_MODEL,
    REDUX_MODEL,
    SIGLIP_MODEL,
    files_note,
)
from tools.page import LOAD, POCKET, Page, note
from tools.prompting_graphs import CHROMA_MODELS


def regions() -> Page:
    return Page(
        note(
            "Regions",
            """One background, and a thing of its own in each half. Each part of the picture reads
            its own sentence, all in one call of the model.""",
            POCKET,
            """the sentences, then the boxes of the regions, in shares of the picture; a mask takes
            a box's place. `across` says how much the parts see of each other: less keeps colours
            apart, more hides seams. For more regions chain more FLUX Region nodes.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "negative", "size", "top text", "bottom text"]],
            "Regions": [["top"], ["bottom"], ["regional"]],
            "Sample": [["sampler", "places"]],
            "Result": [["decode"], ["save"]],
        },
    )


def hires_fix() -> Page:
    return Page(
        note(
            "Hires fix",
            """A picture is drawn at the size that the model knows, enlarged, and drawn again at
            twice the size, in windows that overlap.""",
            POCKET,
            """`second_denoise`: how much of the enlarged picture is drawn anew; FLUX.1 bears 0.5.
            `scale` says how much larger it gets, `tile_size` how large a window is; for FLUX.1
            that is 1024. The memory is that of one window.""",
        ),
        {
            "Load": [*LOAD, ["tiles"]],
            "Prompt": [["prompt", "negative", "size"]],
            "Sample twice": [["sampler"]],
            "Result": [["small", "decode"], ["save_small", "save"]],
        },
    )


def large_picture() -> Page:
    return Page(
        note(
            "A large picture",
            """A picture is drawn, and drawn again twice as large in windows that overlap, led by
            an upscaler ControlNet. The whole of it at once is more than the model knows.""",
            POCKET + " An upscaler ControlNet goes into `models/controlnet`.",
            """`upscale_factor`: how much larger it gets. `tile_size` says how large a window is;
            for FLUX.1 that is 1024. The memory is that of one window, however large the picture.
            In place of the drawn picture wire *Load Image* into the upscaler.""",
        ),
        {
            "Load": [*LOAD, ["tiles"]],
            "Prompt": [["prompt", "negative", "size"]],
            "Sample": [["sampler"], ["decode"]],
            "Enlarge": [["upscaler", "save"], ["redraw"]],
            "Result": [["decode_large"], ["save_large"]],
        },
    )


def inpaint_crop_stitch() -> Page:
    return Page(
        note(
            "Inpaint a part",
            """A part of a picture is cut out with what is around it, drawn anew at the size that
            the model knows, and put back. Every pixel outside of the mask and its soft edge
            stays as it was.""",
            POCKET,
            """the second sentence, and the mask. For a picture of your own wire *Load Image* into
            the crop in the place of both the drawing and the mask, and open it in the MaskEditor.
            `context` says how much around the mask is seen, `blur` how softly it ends. Crops for
            FLUX.1 are 1024.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "negative", "size", "other"]],
            "Draw": [["sampler"], ["decode", "nothing", "part"], ["save", "mask"]],
            "Cut out": [["crop"], ["encode"], ["masked"]],
            "Draw again": [["again"], ["decode_again"]],
            "Result": [["stitch"], ["save_again"]],
        },
    )


def reference_edit() -> Page:
    return Page(
        note(
            "Edit a picture",
            """A picture is drawn, and changed as a sentence asks for: the model looks at the
            picture while it draws, as FLUX.1 Kontext does. The pocket model does so with a LoRA,
            and knows how to give one thing another color.""",
            POCKET,
            """the instruction: *make it green*, *turn the heart yellow*. In place of the drawn
            picture wire *Load Image* into FLUX Reference. The sampler needs no negative prompt.""",
        ),
        {
            "Load": [["policy"], ["loader"], ["lora"]],
            "Prompt": [["prompt", "negative", "size"]],
            "Draw": [["sampler"], ["decode"], ["save"]],
            "Edit": [["instruction"], ["reference"], ["edit"]],
            "Result": [["decode edited"], ["save edited"]],
        },
    )


def redux_variation() -> Page:
    return Page(
        note(
            "Variations",
            """A picture becomes words of the prompt. The model draws by it alone, and with words of
            yours beside it: colors and place are the picture's, the shape is what they say. The
            pocket Redux does not see shapes well, and colors not always.""",
            POCKET + " A Redux model goes into `models/style_models`, SigLIP into "
            "`models/clip_vision`.",
            """the sentence of the first picture, then the words beside it. In place of the drawn
            picture wire *Load Image* into both FLUX Redux nodes. `strength` says how much the
            picture counts beside the words.""",
        ),
        {
            "Load": [["policy"], ["loader", "vision", "redux"]],
            "Prompt": [["prompt", "negative", "size", "words"]],
            "Draw": [["sampler"], ["decode"], ["save"]],
            "Redux": [["picture alone", "picture and words"]],
            "Draw again": [["draw picture alone", "draw picture and words"]],
            "Result": [
                ["decode picture alone", "decode picture and words"],
                ["save picture alone", "save picture and words"],
            ],
        },
    )


def flux1_redux_variation() -> Page:
    return Page(
        note(
            "Redux",
            """A picture becomes words of the prompt: FLUX.1-dev draws what it shows, as the
            sentence says.""",
            files_note([*DEV_MODELS, SIGLIP_MODEL, REDUX_MODEL]),
            """the picture, then `strength`: 1 with an empty sentence varies the picture, less lets
            the sentence say more. A `grid` of 9 or so does that too, and is faster. For more
            pictures chain the node.""",
        ),
        {
            "Load": [["policy"], ["loader", "vision", "redux"]],
            "Prompt": [["prompt", "picture", "size"], ["apply"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


def flux1_ip_adapter() -> Page:
    return Page(
        note(
            "IP-Adapter",
            """A picture is shown to FLUX.1-dev by an IP-Adapter of XLabs' kind: its style and its
            things, while the sentence says what is drawn.""",
            files_note([*DEV_MODELS, CLIP_VISION_MODEL, IP_ADAPTER_MODEL]),
            """the picture, then `weight`, and `end`: at which share of the steps the picture stops
            counting. Both cost nothing to change. For more pictures chain the node.""",
        ),
        {
            "Load": [["policy"], ["loader", "vision", "adapter"]],
            "Prompt": [["prompt", "picture", "size"], ["apply"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


def chroma_text_to_image() -> Page:
    return Page(
        note(
            "Chroma",
            """Chroma1-HD, of FLUX.1's kin, draws a sentence and is led away from another one. It
            reads no CLIP-L.""",
            files_note(CHROMA_MODELS),
            """both sentences, then `cfg`: 3 to 5. `guidance` is not read. For Chroma Flash set
            `cfg` to 1.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "negative", "size"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


PROMPTING_PAGES = (
    regions,
    hires_fix,
    large_picture,
    inpaint_crop_stitch,
    reference_edit,
    redux_variation,
    flux1_redux_variation,
    flux1_ip_adapter,
    chroma_text_to_image,
)
