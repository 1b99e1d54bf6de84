"""The graphs of ``workflows/`` for what says what to draw beside a sentence: regions, pictures,
masks, and sizes beyond the model's own."""

from __future__ import annotations

from tools.graphs import (
    DEV_FILES,
    DEV_SAMPLING,
    POCKET_FILES,
    PROMPT,
    SAMPLING,
    Description,
    Node,
    drawing,
    text,
    upscaled,
)
from tools.model_files import (
    CHROMA_MODEL,
    CLIP_VISION_MODEL,
    DEV_MODELS,
    IP_ADAPTER_MODEL,
    REDUX_MODEL,
    SIGLIP_MODEL,
)

POCKET_SIGLIP = "fluxfit_pocket_siglip.safetensors"
POCKET_REDUX = "fluxfit_pocket_redux.safetensors"
POCKET_EDIT = "fluxfit_pocket_edit.safetensors"
#: For Chroma, which reads no CLIP-L.
CHROMA_FILES = DEV_FILES | {"transformer": CHROMA_MODEL["name"], "clip_l": "none"}
CHROMA_MODELS = [CHROMA_MODEL, *DEV_MODELS[2:]]


def region(prompt: str, name: str, box: dict[str, float], before: str | None = None) -> Node:
    """A region after another one."""
    wires = {"conditioning": (prompt, 0)}
    if before is not None:
        wires["regions"] = (before, 0)
    return Node("FluxFitRegion", {"name": name} | box, wires, title=f"region: {name}")


#: The size of a region that is half of the picture, in shares of it.
HALF = {"width": 1.0, "height": 0.5}


def regions() -> Description:
    """One background, and a thing of its own in each half."""
    graph = drawing("blue background", 256, POCKET_FILES, [], SAMPLING, "FluxFit/regions")
    drawn = {name: graph.pop(name) for name in ("sampler", "decode", "save")}
    drawn["sampler"].wires["positive"] = ("regional", 0)
    return (
        graph
        | {
            "top text": text("a yellow circle at the top, blue background", "top prompt"),
            "bottom text": text("a red square at the bottom, blue background", "bottom prompt"),
            "top": region("top text", "top", {"top": 0.0} | HALF),
            "bottom": region("bottom text", "bottom", {"top": 0.5} | HALF, before="top"),
            "regional": Node(
                "FluxFitRegionalPrompts",
                {"picture_width": 256, "picture_height": 256},
                {"conditioning": ("prompt", 0), "regions": ("bottom", 0)},
            ),
            "places": Node("PreviewImage", {}, {"images": ("regional", 1)}),
        }
        | drawn
    )


LARGE_PROMPT = "a green star in the middle on a black background"


def tiled() -> Node:
    """The pocket model in windows of its own size."""
    return Node(
        "FluxFitTiledDrawing",
        {"tile_size": 256, "overlap": 64, "feather": 64},
        {"model": ("loader", 0)},
    )


def hires_fix() -> Description:
    """A drawing of the model's own size, drawn again at twice the size, in windows."""
    graph = drawing(LARGE_PROMPT, 256, POCKET_FILES, [], SAMPLING, "FluxFit/hires_fix")
    del graph["sampler"]
    drawn = {name: graph.pop(name) for name in ("decode", "save")}
    wires = {
        "model": ("tiles", 0),
        "positive": ("prompt", 0),
        "latent": ("size", 0),
        "vae": ("loader", 2),
        "negative": ("negative", 0),
    }
    return (
        graph
        | {
            "tiles": tiled(),
            "sampler": Node(
                "FluxFitHiresFix",
                dict(SAMPLING) | {"scale": 2.0, "second_steps": 10, "second_denoise": 0.3},
                wires,
            ),
            "small": Node("VAEDecode", {}, {"samples": ("sampler", 1), "vae": ("loader", 2)}),
            "save_small": Node(
                "SaveImage", {"filename_prefix": "FluxFit/first_run"}, {"images": ("small", 0)}
            ),
        }
        | drawn
    )


def large_picture() -> Description:
    """A drawing, enlarged by an upscaler ControlNet in windows."""
    first = drawing(LARGE_PROMPT, 256, POCKET_FILES, [], SAMPLING, "FluxFit/small_picture")
    net = "fluxfit_pocket_upscaler.safetensors"
    values = {"strength": 1.0, "upscale_factor": 2.0}
    graph = first | {"tiles": tiled()} | upscaled(("decode", 0), net, [], values)
    graph["redraw"].wires["model"] = ("tiles", 0)
    return graph


#: The part that is drawn anew, below what is drawn first, in pixels.
HOLE = {"width": 112, "height": 112}
PLACE = {"x": 72, "y": 120}


def inpaint_crop_stitch() -> Description:
    """A part of a drawing, cut out with what is around it, drawn anew and put back."""
    first = drawing(
        "a small red heart at the top on a white background",
        256,
        POCKET_FILES,
        [],
        SAMPLING,
        "FluxFit/before_inpainting",
    )
    return first | {
        "other": text("a green star in the middle on a white background", "other prompt"),
        "nothing": Node("SolidMask", {"value": 0.0, "width": 256, "height": 256}, title="no mask"),
        "part": Node("SolidMask", {"value": 1.0} | HOLE, title="part of the mask"),
        "mask": Node(
            "MaskComposite",
            PLACE | {"operation": "add"},
            {"destination": ("nothing", 0), "source": ("part", 0)},
        ),
        "crop": Node(
            "FluxFitCropForInpaint",
            {"width": 256, "height": 256, "context": 1.5, "grow": 4, "blur": 8},
            {"image": ("decode", 0), "mask": ("mask", 0)},
        ),
        "encode": Node("VAEEncode", {}, {"pixels": ("crop", 0), "vae": ("loader", 2)}),
        "masked": Node("SetLatentNoiseMask", {}, {"samples": ("encode", 0), "mask": ("crop", 1)}),
        "again": Node(
            "FluxSampler",
            dict(SAMPLING),
            {
                "model": ("loader", 0),
                "positive": ("other", 0),
                "latent": ("masked", 0),
                "negative": ("negative", 0),
            },
        ),
        "decode_again": Node("VAEDecode", {}, {"samples": ("again", 0), "vae": ("loader", 2)}),
        "stitch": Node("FluxFitStitch", {}, {"stitch": ("crop", 2), "image": ("decode_again", 0)}),
        "save_again": Node(
            "SaveImage",
            {"filename_prefix": "FluxFit/inpaint_crop_stitch"},
            {"images": ("stitch", 0)},
        ),
    }


def again(seed: int, positive: tuple[str, int], title: str) -> Node:
    """The pocket model's sampler on another prompt."""
    wires = {
        "model": ("loader", 0),
        "positive": positive,
        "latent": ("size", 0),
        "negative": ("negative", 0),
    }
    return Node("FluxSampler", dict(SAMPLING) | {"seed": seed}, wires, title=title)


def shown_by(words: str, title: str) -> Node:
    """The drawing as part of a prompt, by the pocket Redux."""
    wires = {
        "conditioning": (words, 0),
        "style_model": ("redux", 0),
        "clip_vision": ("vision", 0),
        "image": ("decode", 0),
    }
    return Node("FluxFitRedux", {}, wires, title=title)


SHOWN = "a blue circle in the middle on a yellow background"


def redux_pocket() -> Description:
    """A drawing, and two drawings by it: one by the picture alone, one with words beside it."""
    graph = drawing(SHOWN, 256, POCKET_FILES, [], SAMPLING, "FluxFit/before_redux")
    policy = {"policy": ("policy", 0)}
    graph |= {
        "vision": Node("FluxFitVisionLoader", {"vision": POCKET_SIGLIP}, policy),
        "redux": Node("FluxFitReduxLoader", {"redux": POCKET_REDUX}, policy),
        "words": text("a heart", "words beside the picture"),
        "picture alone": shown_by("negative", "the picture alone"),
        "picture and words": shown_by("words", "the picture and words"),
    }
    for seed, name in ((8, "picture alone"), (9, "picture and words")):
        graph |= {
            f"draw {name}": again(seed, (name, 0), f"by {name}"),
            f"decode {name}": Node(
                "VAEDecode", {}, {"samples": (f"draw {name}", 0), "vae": ("loader", 2)}
            ),
            f"save {name}": Node(
                "SaveImage",
                {"filename_prefix": f"FluxFit/redux_{name.replace(' ', '_')}"},
                {"images": (f"decode {name}", 0)},
            ),
        }
    return graph


def reference_edit() -> Description:
    """A drawing, and the same one changed as a sentence asks for, by the pocket edit LoRA."""
    graph = drawing(PROMPT, 256, POCKET_FILES, [], SAMPLING, "FluxFit/before_edit")
    return graph | {
        "lora": Node("FluxFitLoraLoader", {"lora": POCKET_EDIT}, {"model": ("loader", 0)}),
        "instruction": text("make it blue", "what to change"),
        "reference": Node(
            "FluxFitReference",
            {"size": "own"},
            {"positive": ("instruction", 0), "vae": ("loader", 2), "image": ("decode", 0)},
        ),
        "edit": Node(
            "FluxSampler",
            dict(SAMPLING) | {"cfg": 1.0},
            {"model": ("lora", 0), "positive": ("reference", 0), "latent": ("reference", 2)},
            title="edit",
        ),
        "decode edited": Node("VAEDecode", {}, {"samples": ("edit", 0), "vae": ("loader", 2)}),
        "save edited": Node(
            "SaveImage",
            {"filename_prefix": "FluxFit/reference_edit"},
            {"images": ("decode edited", 0)},
        ),
    }


def dev_drawing(prompt: str, prefix: str) -> Description:
    """FLUX.1-dev, a sentence, and a picture of the person's own that nothing reads yet."""
    graph = drawing(prompt, 1024, DEV_FILES, DEV_MODELS, DEV_SAMPLING, prefix)
    return graph | {"picture": Node("LoadImage", {"image": "example.png"})}


def vision(model: dict[str, str]) -> Node:
    """An encoder that sees pictures, under the policy of the other models."""
    return Node(
        "FluxFitVisionLoader", {"vision": model["name"]}, {"policy": ("policy", 0)}, models=[model]
    )


def redux_variation() -> Description:
    """A picture as part of the prompt, by FLUX.1 Redux."""
    graph = dev_drawing("in the style of a woodcut", "FluxFit/redux")
    graph |= {
        "vision": vision(SIGLIP_MODEL),
        "redux": Node(
            "FluxFitReduxLoader",
            {"redux": REDUX_MODEL["name"]},
            {"policy": ("policy", 0)},
            models=[REDUX_MODEL],
        ),
        "apply": Node(
            "FluxFitRedux",
            {"strength": 0.5, "strength_type": "attn_bias"},
            {
                "conditioning": ("prompt", 0),
                "style_model": ("redux", 0),
                "clip_vision": ("vision", 0),
                "image": ("picture", 0),
            },
        ),
    }
    graph["sampler"].wires["positive"] = ("apply", 0)
    return graph


def ip_adapter() -> Description:
    """A picture shown to every block of FLUX.1-dev by an IP-Adapter."""
    graph = dev_drawing("a cat on a window sill, morning light", "FluxFit/ip_adapter")
    graph |= {
        "vision": vision(CLIP_VISION_MODEL),
        "adapter": Node(
            "FluxFitIPAdapterLoader",
            {"ip_adapter": IP_ADAPTER_MODEL["name"]},
            models=[IP_ADAPTER_MODEL],
        ),
        "apply": Node(
            "FluxFitApplyIPAdapter",
            {"weight": 0.7},
            {
                "model": ("loader", 0),
                "ip_adapter": ("adapter", 0),
                "clip_vision": ("vision", 0),
                "image": ("picture", 0),
            },
        ),
    }
    graph["sampler"].wires["model"] = ("apply", 0)
    return graph


def chroma() -> Description:
    """A sentence to a picture by Chroma, led away from another one."""
    graph = drawing(
        "a close-up photograph of a tiger's eye, natural light",
        1024,
        CHROMA_FILES,
        CHROMA_MODELS,
        {"seed": 7, "steps": 26, "cfg": 4.0},
        "FluxFit/chroma",
    )
    graph["loader"].values["transformer_precision"] = "as_stored"
    graph["negative"].values["prompt"] = "blurry, low quality, drawing"
    return graph


def prompting_graphs() -> dict[str, Description]:
    """All graphs of this file, by the names of their files."""
    return {
        "regions": regions(),
        "hires_fix": hires_fix(),
        "large_picture": large_picture(),
        "inpaint_crop_stitch": inpaint_crop_stitch(),
        "reference_edit": reference_edit(),
        "redux_variation": redux_pocket(),
        "flux1_redux_variation": redux_variation(),
        "flux1_ip_adapter": ip_adapter(),
        "chroma_text_to_image": chroma(),
    }
