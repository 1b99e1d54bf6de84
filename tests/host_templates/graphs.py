"""A template as the page queues it, made small, and its loaders replaced by ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tests.host_templates.wide_models import NAMES

Prompt = dict[str, Any]

SIDE, STEPS = 128, 2
OURS = "fluxfit"
SAME_FILE = "same file as the transformer"
#: Where each output of a stock loader is on ours: MODEL, CLIP, VAE.
MODEL, CLIP, VAE = 3, 4, 2
SOCKETS = {
    "UNETLoader": (MODEL,),
    "DualCLIPLoader": (CLIP,),
    "VAELoader": (VAE,),
    "CheckpointLoaderSimple": (MODEL, CLIP, VAE),
}


def smaller(prompt: Prompt) -> Prompt:
    """The same graph for a CPU: small pictures, few steps; depth is the picture itself."""
    prompt = copy.deepcopy(prompt)
    numbers = {
        "width": lambda _: SIDE,
        "height": lambda _: SIDE,
        "steps": lambda _: STEPS,
        "megapixels": lambda _: SIDE**2 / 2**20,
        "largest_size": lambda _: SIDE,
        "left": scaled,
        "top": scaled,
        "right": scaled,
        "bottom": scaled,
    }
    for item in prompt.values():
        for name, value in item["inputs"].items():
            if name in numbers and isinstance(value, int | float):
                item["inputs"][name] = numbers[name](value)
        if item["class_type"] == "FluxKontextImageScale":  # to a million pixels
            item["class_type"] = "ImageScale"
            item["inputs"] |= {"upscale_method": "lanczos", "crop": "disabled"}
            item["inputs"] |= {"width": SIDE, "height": SIDE}
        if item["class_type"] == "ImageScaleToTotalPixels":
            depth = item
            lotus = [
                v for v in prompt.values() if v["class_type"] == "InstructPixToPixConditioning"
            ]
            for other in lotus:  # a depth model of another family stands between
                key = next(k for k, v in prompt.items() if v is depth)
                other["inputs"]["pixels"] = [key, 0]
    return needed(prompt)


def scaled(pixels: float) -> int:
    return int(pixels) * SIDE // 1024 // 8 * 8


def needed(prompt: Prompt) -> Prompt:
    """What the saved pictures depend on; where none are saved, those that are shown."""
    for output in ("SaveImage", "PreviewImage"):
        waiting = [key for key, item in prompt.items() if item["class_type"] == output]
        if waiting:
            break
    kept: Prompt = {}
    while waiting:
        key = waiting.pop()
        if key in kept:
            continue
        kept[key] = prompt[key]
        waiting += [value[0] for value in prompt[key]["inputs"].values() if isinstance(value, list)]
    return kept


def swapped(prompt: Prompt, **inputs: Any) -> Prompt:
    """The graph with stock loaders replaced by one FluxLoaderFP8 of the same files."""
    files: dict[str, str] = {}
    for item in prompt.values():
        if item["class_type"] in FILES:
            files |= FILES[item["class_type"]](item["inputs"])
    values = {
        "transformer_precision": "bf16",
        "clip_l_precision": "bf16",
        "t5_precision": "as_stored",
        "vae_precision": "bf16",
    }
    return rewired(
        prompt, SOCKETS, {"class_type": "FluxLoaderFP8", "inputs": values | files | inputs}
    )


def with_our_transformer(prompt: Prompt, **inputs: Any) -> Prompt:
    """The graph with the transformer's loader alone replaced."""
    loader = next(v for v in prompt.values() if v["class_type"] == "UNETLoader")
    values = FILES["UNETLoader"](loader["inputs"]) | {"precision": "bf16", "compute": "auto"}
    node = {"class_type": "FluxFitTransformerLoader", "inputs": values | inputs}
    return rewired(prompt, {"UNETLoader": (1,)}, node)


def rewired(prompt: Prompt, sockets: dict[str, tuple[int, ...]], node: dict[str, Any]) -> Prompt:
    """The graph with one node in the place of all of some types; where their outputs are on it."""
    prompt = copy.deepcopy(prompt)
    gone = {key: v["class_type"] for key, v in prompt.items() if v["class_type"] in sockets}
    for key in gone:
        del prompt[key]
    for item in prompt.values():
        for name, value in item["inputs"].items():
            if isinstance(value, list) and value[0] in gone:
                item["inputs"][name] = [OURS, sockets[gone[value[0]]][value[1]]]
    prompt[OURS] = node
    return prompt


def dual_clip(inputs: dict[str, Any]) -> dict[str, str]:
    names = [inputs["clip_name1"], inputs["clip_name2"]]
    names.sort(key=lambda name: "clip_l" not in name)
    return {"clip_l": names[0], "t5": names[1]}


def whole(inputs: dict[str, Any]) -> dict[str, str]:
    parts = dict.fromkeys(("clip_l", "t5", "vae"), SAME_FILE)
    name = inputs["ckpt_name"]
    if f"diffusion_models/{name}" in NAMES:  # then the folder says which is meant
        name = f"checkpoints/{name}"
    return {"transformer": name} | parts


FILES: dict[str, Callable[[dict[str, Any]], dict[str, str]]] = {
    "UNETLoader": lambda inputs: {"transformer": inputs["unet_name"]},
    "DualCLIPLoader": dual_clip,
    "VAELoader": lambda inputs: {"vae": inputs["vae_name"]},
    "CheckpointLoaderSimple": whole,
}
