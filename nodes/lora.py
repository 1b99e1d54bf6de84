"""The nodes that put LoRAs on a model, beside its weights or into them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from flux_core import save_module
from flux_core.lora import Lora, load_lora, match_lora, merge_loras
from flux_core.lora.match import lora_report, refuse_unmatched

from . import host
from .weights import OpenedByNode, Wanted, weights_key
from .widgets import model_file, number, socket, text, toggle
from .wires import FLUX_MODEL, FLUX_TEXT_ENCODERS, LORAS, FluxModel, FluxTextEncoders

FOLDER = "loras"


def wanted_lora(path: Path) -> Wanted:
    """A LoRA's file, for ``OpenedByNode``: another strength finds it prepared."""
    return Wanted(weights_key("lora", path, ""), lambda: load_lora(path))


def strength_input(tooltip: str) -> tuple:
    return number(1.0, -20.0, 20.0, 0.01, tooltip)


class FluxFitLoraLoader:
    """A LoRA beside the weights."""

    DESCRIPTION = (
        "Puts a LoRA on a model of any precision and any offload policy: it is added beside the "
        "weights, never into them. Reads kohya, diffusers, ai-toolkit, PEFT, ComfyUI, XLabs and "
        "OneTrainer, with LoHa, LoKr and DoRA. Chain several; another strength costs nothing."
    )
    CATEGORY = LORAS
    FUNCTION = "load"
    SEARCH_ALIASES = ["lora", "load lora", "lycoris", "loha", "lokr", "dora"]
    RETURN_TYPES = (FLUX_MODEL, FLUX_TEXT_ENCODERS, "STRING")
    RETURN_NAMES = ("model", "text_encoders", "report")
    OUTPUT_TOOLTIPS = (
        "For FluxSampler, or the next LoRA.",
        "For FluxTextEncode; what was wired in, with the LoRA where it has layers for them.",
        "Which tensors were applied, and which not.",
    )

    def __init__(self) -> None:
        self.opened = OpenedByNode()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": socket(FLUX_MODEL, "From a loader, or the LoRA before."),
                "lora": model_file((FOLDER,), "A file of the folder models/loras."),
                "strength": strength_input("For the transformer; 0 leaves it out."),
                "strength_text": strength_input("For the text encoders, where it has layers."),
                "on": toggle(True, "Off passes everything through."),
            },
            "optional": {
                "text_encoders": socket(
                    FLUX_TEXT_ENCODERS, "Wire these through where the LoRA was trained on them too."
                )
            },
        }

    def load(
        self,
        model: FluxModel,
        lora: str,
        strength: float,
        strength_text: float,
        on: bool,
        text_encoders: FluxTextEncoders | None = None,
    ):
        if not on:
            return (model, text_encoders, f"{lora}: off")
        opened: Lora = self.opened.one(wanted_lora(host.model_path(lora, FOLDER)))
        parts = [match_lora(opened, model.transformer)]
        if text_encoders is not None:
            encoders = text_encoders.encoders
            parts += [match_lora(opened, part) for part in encoders.modules_used]
        refuse_unmatched(opened, parts)
        changed = replace(model, loras=(*model.loras, (opened, strength)))
        if text_encoders is not None:
            text_encoders = replace(
                text_encoders, loras=(*text_encoders.loras, (opened, strength_text))
            )
        return (changed, text_encoders, lora_report(opened, parts))


class FluxFitMergeLoras:
    """LoRAs into the weights, as a file."""

    DESCRIPTION = (
        "Adds the LoRAs on a model to a copy of its weights and writes that as one file. The model "
        "must be loaded in bf16, fp16 or fp32; needs its size in memory once more."
    )
    CATEGORY = LORAS
    FUNCTION = "merge"
    OUTPUT_NODE = True
    SEARCH_ALIASES = ["bake lora", "fuse lora", "save lora"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("path",)
    OUTPUT_TOOLTIPS = ("Where it was written.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": socket(FLUX_MODEL, "From FluxFitLoraLoader."),
                "name": text("merged", "Written to output/diffusion_models under this name."),
                "overwrite": toggle(False, "Whether a file of that name is replaced."),
            }
        }

    def merge(self, model: FluxModel, name: str, overwrite: bool):
        if not model.loras:
            raise ValueError("there is no LoRA on this model: wire it through FluxFitLoraLoader")
        path = host.inside(host.output_folder() / "diffusion_models", f"{name}.safetensors")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already: choose another name or overwrite")
        merged = merge_loras(copy.deepcopy(model.transformer), model.loras)
        with host.progress(100, "saving") as bar:
            save_module(merged, path, progress=lambda done, all: bar.update(100 * done // all))
        return (str(path),)
