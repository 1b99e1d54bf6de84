"""How the graphs of ``workflows/`` are shown: their steps, and what the note beside them says."""

from __future__ import annotations

from tools.control_pages import CONTROL_PAGES
from tools.graphs import CALIBRATED, COMPARED, CONCEPT
from tools.model_files import (
    CANNY_MODEL,
    DEV_MODELS,
    FILL_MODEL,
    GGUF_MODEL,
    KLEIN_MODELS,
    KONTEXT_MODEL,
    UNION_MODEL,
    UPSCALER_MODEL,
    files_note,
    with_transformer,
)
from tools.page import LOAD, POCKET, Page, note
from tools.prompting_pages import PROMPTING_PAGES


def text_to_image() -> Page:
    return Page(
        note(
            "Text to image",
            "The pocket model draws a sentence: one large thing in a place, on a background.",
            POCKET,
            """the sentence, then `seed`. `steps` and `cfg` of the sampler say how carefully it is
            followed, the loader's precisions how small the weights are.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "negative", "size"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


def upscale() -> Page:
    return Page(
        note(
            "Upscale",
            """A picture is drawn, made small and blurred, and drawn again four times as large by
            an upscaler ControlNet.""",
            POCKET + " An upscaler ControlNet goes into `models/controlnet`.",
            """`strength` of the upscaler: how closely the large picture keeps to the small one.
            `upscale_factor` says how much larger it is. In place of the drawn picture wire
            *Load Image* into the upscaler.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "negative", "size"]],
            "Sample": [["sampler"]],
            "Original": [["decode"], ["small", "save"], ["blur"]],
            "Enlarge": [["upscaler"], ["redraw"]],
            "Result": [["decode_large"], ["save_large"]],
        },
    )


def compare_precisions() -> Page:
    labels = ("bf16", *COMPARED, f"{CALIBRATED}, calibrated")
    samplers = [f"sampler {label}" for label in labels]
    return Page(
        note(
            "Compare precisions",
            """One sentence drawn by the same transformer at every precision. The sheet says how
            far each picture is from that of bf16. The last one is calibrated: it is quantized for
            what the layers read while a few other sentences are drawn.""",
            POCKET,
            """the sentence and `seed`, on all samplers alike. For a precision of your own choose
            it in one of the loaders.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "negative", "size", "seen 0", "seen 1"]],
            "Precision": [[*COMPARED, labels[-1]]],
            "Sample": [samplers[:3], samplers[3:]],
            "Result": [[f"decode {label}" for label in labels], ["grid"], ["save"]],
        },
    )


def train_lora() -> Page:
    return Page(
        note(
            "Train a LoRA",
            f"""The pocket model learns a shape that it cannot draw, and draws *{CONCEPT}* without
            and with what it learned.""",
            f"""{POCKET} Pictures to train on lie in a folder of ComfyUI's `input`, a text file
            beside each; the LoRA is written to where the LoRA loaders list it.""",
            """the dataset's `folder`, and `sample_prompts`: what is drawn while it trains.
            `steps` and `learning_rate` say how much is learned.""",
        ),
        {
            "Load": LOAD,
            "Data": [["dataset", "settings"]],
            "Train": [["train", "pictures"]],
            "Prompt": [["prompt", "negative", "size", "loss"]],
            "Sample": [["before", "after"]],
            "Result": [["decode before", "decode after"], ["grid"], ["save"]],
        },
    )


def batch_table() -> Page:
    return Page(
        note(
            "Batch over a table",
            """A table of six sentences and seeds, drawn row by row into a folder of the output
            folder, with a page to look at (`index.html`). Queue again to go on where it stopped:
            what is done is not drawn twice.""",
            POCKET + " Tables lie in ComfyUI's `input`: CSV, JSONL or Parquet.",
            """the table, whose columns are called `NODE.INPUT` or get an input by `mapping`; a
            `grid` such as `seed=1..8` draws every row with every value. Then `folder`.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "negative", "size"]],
            "Sample": [["sampler"]],
            "Table": [["table", "decode"]],
            "Result": [["batch"], ["grid"]],
        },
    )


def flux1_dev_fp8_offload() -> Page:
    return Page(
        note(
            "FLUX.1-dev in float8",
            """A picture of a million pixels by FLUX.1-dev, its weights in 8 bits, and what each
            part of it took of the memory.""",
            files_note(DEV_MODELS),
            """the policy's `mode`: *component* has one part on the card at a time, *stream* a few
            blocks only. *auto* chooses by what the card has free.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "size"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["memory", "save"], ["timeline"]],
        },
    )


def flux1_dev_upscaler_fp8() -> Page:
    return Page(
        note(
            "Upscale with FLUX.1-dev",
            """A picture of your own, four times as large, by the public upscaler ControlNet in 8
            bits.""",
            files_note([*DEV_MODELS, UPSCALER_MODEL]),
            """the picture, then `strength` of the upscaler: how closely the large picture keeps to
            the small one. Large pictures: lower `upscale_factor`.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "picture"]],
            "Enlarge": [["upscaler"], ["redraw"]],
            "Result": [["decode_large"], ["save_large"]],
        },
    )


def swap_the_loader() -> Page:
    return Page(
        note(
            "Swap the loader",
            """ComfyUI's own graph for FLUX.1 with one change: FluxFit's loader stands in the place
            of its loaders. Stock nodes draw with weights that are quantized and streamed; a stock
            LoraLoader, ControlNet or guider fits in between as ever.""",
            POCKET,
            """in a graph of your own replace the loaders by this one and wire MODEL, CLIP and VAE;
            then `transformer_precision`, and the policy's `mode`.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "negative", "size"], ["guidance"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


def image_to_image() -> Page:
    return Page(
        note(
            "Image to image",
            "A picture is drawn, and drawn again from it with another sentence.",
            POCKET,
            """`denoise` of the second sampler: how much of the first picture is given up. In place
            of the drawn picture wire *Load Image* into *VAE Encode*.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "negative", "size", "other"]],
            "Draw": [["sampler"], ["decode"], ["encode", "save"]],
            "Draw again": [["again"]],
            "Result": [["decode_again"], ["save_again"]],
        },
    )


def flux1_dev_lora() -> Page:
    return Page(
        note(
            "A LoRA on FLUX.1-dev",
            """A LoRA stands beside the quantized weights, never in them: another strength costs no
            time, and taking it away leaves the bits as they were.""",
            files_note(DEV_MODELS, "`loras/`, any LoRA of FLUX.1; choose it in the LoRA node"),
            "the LoRA's file, then `strength`. For several, chain the node.",
        ),
        {
            "Load": [*LOAD, ["lora"]],
            "Prompt": [["prompt", "size"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


def flux1_dev_controlnet_union() -> Page:
    return Page(
        note(
            "A union ControlNet",
            "FLUX.1-dev led by a picture, in the way that `mode` names.",
            files_note([*DEV_MODELS, UNION_MODEL]),
            """the picture, in the size to draw; `mode`, which says what the picture is; then
            `strength` and `end`: where the ControlNet stops.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "size", "picture"]],
            "Control": [["control"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


def flux1_dev_gguf() -> Page:
    return Page(
        note(
            "FLUX.1-dev from GGUF",
            """A GGUF file is opened by the same loader; `as_stored` keeps 8-bit codes where a layer
            has them.""",
            files_note(with_transformer(GGUF_MODEL)),
            "`transformer_precision`, which may be another than the file's; then the policy.",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "size"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


def flux1_fill_inpaint() -> Page:
    return Page(
        note(
            "Inpaint with FLUX.1-Fill",
            "The masked part of a picture is painted anew, the rest stays.",
            files_note(with_transformer(FILL_MODEL)),
            """the picture, and its mask (right click, *Open in MaskEditor*); the sentence says what
            is to stand there. Fill wants a `guidance` around 30.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "picture"], ["inpaint"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


def flux1_kontext_edit() -> Page:
    return Page(
        note(
            "Edit with FLUX.1 Kontext",
            "A picture is changed as a sentence asks for; the rest of it stays.",
            files_note(with_transformer(KONTEXT_MODEL)),
            """the picture, and the sentence: say what to change and what to keep. Kontext wants a
            `guidance` around 2.5. More pictures go through more FLUX Reference nodes in a row.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "picture"], ["reference"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


def flux1_canny() -> Page:
    return Page(
        note(
            "Edges with FLUX.1-Canny",
            "A sentence is drawn along the edges of a picture, which the model reads as channels.",
            files_note(with_transformer(CANNY_MODEL)),
            """the picture, which is to be edges already, white on black: for a photograph put
            ComfyUI's *Canny* in between. Then the sentence. Canny wants a `guidance` around 30, and
            draws in the picture's size. FLUX.1-Depth fits in its place, with a picture of
            depth.""",
        ),
        {
            "Load": LOAD,
            "Prompt": [["prompt", "picture"], ["edges"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


#: FLUX.2's loaders.
PARTS = [["policy"], ["transformer", "text encoder", "vae"]]


def flux2_klein_text_to_image() -> Page:
    return Page(
        note(
            "FLUX.2 klein",
            "FLUX.2 klein 4B draws a sentence in four steps. A language model reads it.",
            files_note(KLEIN_MODELS),
            """the sentence, then both precisions and the policy's `mode`. Klein reads no
            `guidance` and no negative prompt. The base variants want a `cfg` and more steps.""",
        ),
        {
            "Load": PARTS,
            "Prompt": [["prompt", "size"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


def flux2_klein_edit() -> Page:
    return Page(
        note(
            "Edit with FLUX.2 klein",
            """A picture is changed as a sentence asks for: FLUX.2 klein looks at it while it
            draws.""",
            files_note(KLEIN_MODELS),
            """the picture, and the sentence. More pictures go through more FLUX Reference nodes in
            a row.""",
        ),
        {
            "Load": PARTS,
            "Prompt": [["prompt", "picture"], ["reference"]],
            "Sample": [["sampler"]],
            "Result": [["decode"], ["save"]],
        },
    )


PAGES = {
    page.__name__: page()
    for page in (
        text_to_image,
        upscale,
        compare_precisions,
        train_lora,
        batch_table,
        flux1_dev_fp8_offload,
        flux1_dev_upscaler_fp8,
        swap_the_loader,
        image_to_image,
        flux1_dev_lora,
        flux1_dev_controlnet_union,
        flux1_dev_gguf,
        flux1_fill_inpaint,
        flux1_kontext_edit,
        flux1_canny,
        flux2_klein_text_to_image,
        flux2_klein_edit,
        *PROMPTING_PAGES,
        *CONTROL_PAGES,
    )
}
