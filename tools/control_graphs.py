"""The graphs of ``workflows/`` for how a picture is drawn beside what the sentence says: guidance,
where and when a LoRA counts, soft masks."""

from __future__ import annotations

from tools.graphs import POCKET_FILES, SAMPLING, Description, Node, drawing, text
from tools.prompting_graphs import POCKET_EDIT

Wire = tuple[str, int]


def decoded(latent: str) -> Node:
    return Node("VAEDecode", {}, {"samples": (latent, 0), "vae": ("loader", 2)})


def saved(image: str, name: str) -> Node:
    return Node("SaveImage", {"filename_prefix": f"FluxFit/{name}"}, {"images": (image, 0)})


def with_and_without(graph: Description, name: str) -> Description:
    """A drawing, and the same one with the model of the node ``changed``."""
    sampler = graph["sampler"]
    wires = sampler.wires | {"model": ("changed", 0)}
    sampler.title = f"without {name}"
    return graph | {
        "with": Node("FluxSampler", dict(sampler.values), wires, title=f"with {name}"),
        "decode with": decoded("with"),
        "save with": saved("decode with", f"with_{name.replace(' ', '_')}"),
    }


NAG_PROMPT = "a large red heart in the middle"


def nag() -> Description:
    """A negative prompt at cfg 1, and the same drawing without it."""
    sampling = SAMPLING | {"cfg": 1.0}
    graph = drawing(NAG_PROMPT, 256, POCKET_FILES, [], sampling, "FluxFit/without_nag")
    graph["negative"].values["prompt"] = f"{NAG_PROMPT} on a white background"
    graph["changed"] = Node(
        "FluxFitNAG", {"scale": 5.0, "alpha": 0.25, "end": 0.3}, {"model": ("loader", 0)}
    )
    return with_and_without(graph, "nag")


def guidance_options() -> Description:
    """A strong cfg over a part of the steps, and over all of them."""
    prompt = "a large purple star in the middle on a yellow background"
    sampling = SAMPLING | {"cfg": 12.0}
    graph = drawing(prompt, 256, POCKET_FILES, [], sampling, "FluxFit/without_options")
    graph["changed"] = Node(
        "FluxFitGuidance", {"end": 0.2, "cfg_zero": "velocity"}, {"model": ("loader", 0)}
    )
    return with_and_without(graph, "options")


#: What FLUX LoRA Control says in each edit, by what the sheet calls it.
CONTROLLED = {
    "blocks: double 0: 0": {"blocks": "double 0: 0"},
    "blocks: single: 0.5": {"blocks": "single: 0.5"},
    "schedule: off from 0.85": {"schedule": "step 0:1, 0.85:0"},
    "schedule: on from 0.4": {"schedule": "step 0:0, 0.4:1"},
}


def lora_control() -> Description:
    """One edit by a LoRA, whole and with some of its blocks or steps, on one sheet."""
    prompt = "a large red heart in the middle on a white background"
    graph = drawing(prompt, 256, POCKET_FILES, [], SAMPLING, "")
    del graph["save"]
    graph |= {
        "lora": Node("FluxFitLoraLoader", {"lora": POCKET_EDIT}, {"model": ("loader", 0)}),
        "instruction": text("make it blue", "what to change"),
        "reference": Node(
            "FluxFitReference",
            {"size": "own"},
            {"positive": ("instruction", 0), "vae": ("loader", 2), "image": ("decode", 0)},
        ),
    }
    shown: dict[str, Wire] = {"image_1": ("decode", 0)}
    for i, (label, values) in enumerate({"the LoRA alone": {}, **CONTROLLED}.items()):
        model = label if values else "lora"
        if values:
            graph[label] = Node("FluxFitLoraControl", values, {"model": ("lora", 0)}, title=label)
        graph[f"edit {label}"] = Node(
            "FluxSampler",
            SAMPLING | {"cfg": 1.0},
            {"model": (model, 0), "positive": ("reference", 0), "latent": ("reference", 2)},
            title=f"edit, {label}",
        )
        graph[f"decode {label}"] = decoded(f"edit {label}")
        shown[f"image_{i + 2}"] = (f"decode {label}", 0)
    labels = "\n".join(("drawn first", "the LoRA alone", *CONTROLLED))
    return graph | {
        "grid": Node("FluxFitGrid", {"labels": labels, "compare_to_first": False}, shown),
        "save": saved("grid", "lora_control"),
    }


#: The part that is drawn anew, in pixels, and how much of it fades out.
PART = {"width": 144, "height": 144}
PLACE = {"x": 56, "y": 108}
FADE = dict.fromkeys(("left", "top", "right", "bottom"), 32)


def placed(operation: str, destination: str, source: str, title: str) -> Node:
    """A part of the mask on a whole one."""
    wires = {"destination": (destination, 0), "source": (source, 0)}
    return Node("MaskComposite", PLACE | {"operation": operation}, wires, title=title)


def masks() -> Description:
    """The part with a hard edge, with a soft one, and what is outside of it."""
    whole = {"width": 256, "height": 256}
    return {
        "nothing": Node("SolidMask", {"value": 0.0} | whole, title="no mask"),
        "everything": Node("SolidMask", {"value": 1.0} | whole, title="all of it"),
        "part": Node("SolidMask", {"value": 1.0} | PART, title="part of the mask"),
        "fade": Node("FeatherMask", FADE, {"mask": ("part", 0)}),
        "hard": placed("add", "nothing", "part", "hard mask"),
        "soft": placed("add", "nothing", "fade", "soft mask"),
        "outside": placed("subtract", "everything", "part", "outside of the mask"),
    }


def again(model: str, mask: str) -> Description:
    """The drawing with another thing in the place of a mask."""
    wires = {
        "model": (model, 0),
        "positive": ("other", 0),
        "latent": (f"{mask} latent", 0),
        "negative": ("negative", 0),
    }
    return {
        f"{mask} latent": Node(
            "SetLatentNoiseMask", {}, {"samples": ("encode", 0), "mask": (mask, 0)}
        ),
        f"draw {mask}": Node("FluxSampler", SAMPLING | {"seed": 8}, wires, title=f"{mask} mask"),
        f"decode {mask}": decoded(f"draw {mask}"),
    }


def kept(image: str, mask: str, feather: int) -> Node:
    wires = {"image": (image, 0), "original": ("decode", 0), "mask": (mask, 0)}
    return Node("FluxFitKeepPixels", {"feather": feather}, wires)


def compared(image: str, name: str) -> Node:
    """A picture beside the first one, with their difference."""
    wires = {"image_a": ("decode", 0), "image_b": (image, 0)}
    return Node("FluxFitCompare", {"name_a": "before", "name_b": name, "gain": 16.0}, wires)


def soft_inpaint() -> Description:
    """A thing drawn into a picture with a hard mask, and with a soft one and matched colors."""
    background = "on a pink background"
    prompt = f"a small red heart at the top {background}"
    graph = drawing(prompt, 256, POCKET_FILES, [], SAMPLING, "FluxFit/before_soft_inpaint")
    graph |= {
        "other": text(f"a blue circle at the bottom {background}", "other prompt"),
        "differential": Node("FluxFitDifferentialDiffusion", {}, {"model": ("loader", 0)}),
        "encode": Node("VAEEncode", {}, {"pixels": ("decode", 0), "vae": ("loader", 2)}),
    }
    graph |= masks() | again("loader", "hard") | again("differential", "soft")
    colors: dict[str, Wire] = {
        "image": ("decode soft", 0),
        "reference": ("decode", 0),
        "mask": ("outside", 0),
    }
    return graph | {
        "keep hard": kept("decode hard", "hard", 0),
        "colors": Node("FluxFitColorMatch", {}, colors),
        "keep soft": kept("colors", "soft", 8),
        "compare hard": compared("keep hard", "hard mask"),
        "compare soft": compared("keep soft", "no seam"),
        "show hard": Node("PreviewImage", {}, {"images": ("compare hard", 0)}),
        "show soft": Node("PreviewImage", {}, {"images": ("compare soft", 0)}),
        "save hard": saved("keep hard", "hard_inpaint"),
        "save soft": saved("keep soft", "soft_inpaint"),
    }


def control_graphs() -> dict[str, Description]:
    """All graphs of this file, by the names of their files."""
    return {
        "nag": nag(),
        "guidance_options": guidance_options(),
        "lora_control": lora_control(),
        "soft_inpaint": soft_inpaint(),
    }
