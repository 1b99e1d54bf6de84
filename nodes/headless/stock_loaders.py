"""Stand-ins for the host's loaders: every file through our own, at the precision that it has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flux_core import OffloadPolicy, load_clip_l, load_t5, load_vae
from flux_core.checkpoint.build import AS_STORED
from flux_core.checkpoint.detect import find_parts
from flux_core.checkpoint.load import transformer_family
from flux_core.checkpoint.reader import open_source

from .. import host
from ..loaders import PLACES, FluxFitTransformerLoader, encoders_of
from ..lora import FOLDER, FluxFitLoraLoader
from ..vae import HostVAE
from ..wires import FluxModel, FluxTextEncoders

#: What the host calls how a transformer is stored, and what we do.
WEIGHT_DTYPES = {
    "default": AS_STORED,
    "fp8_e4m3fn": "fp8_e4m3fn",
    "fp8_e4m3fn_fast": "fp8_e4m3fn",
    "fp8_e5m2": "fp8_e5m2",
}
STRENGTH = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}


def stock_file(*folders: str) -> tuple:
    """An input for a file of some of the model folders, which its options name."""
    return (host.model_names(*folders), {"folders": list(folders)})


def text_encoders(paths: Sequence[Path], t5_alone: bool = False) -> FluxTextEncoders:
    """CLIP-L and T5 from files in any order, or T5 alone; raises ``ValueError`` where one is
    missing."""
    files: dict[str, Path] = {}
    for path in paths:
        for part in find_parts(open_source(path)):
            files.setdefault(part.kind, path)
    wanted = ("t5",) if t5_alone else ("clip_l", "t5")
    missing = [kind for kind in wanted if kind not in files]
    if missing:
        names = " and ".join(str(path) for path in dict.fromkeys(paths))
        reader = "Chroma reads T5" if t5_alone else "FLUX.1 reads both"
        raise ValueError(f"{names}: no {' and no '.join(missing)} in it, {reader}")
    clip_l, t5 = None if t5_alone else files["clip_l"], files["t5"]
    opened = None if clip_l is None else load_clip_l(clip_l, precision=AS_STORED)
    encoders = encoders_of(opened, load_t5(t5, precision=AS_STORED), clip_l, t5)
    return FluxTextEncoders(encoders, OffloadPolicy())


class UNETLoader:
    """A transformer of models/diffusion_models."""

    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        file = stock_file(*PLACES["transformer"])
        return {"required": {"unet_name": file, "weight_dtype": (list(WEIGHT_DTYPES),)}}

    def load(self, unet_name: str, weight_dtype: str):
        loader = FluxFitTransformerLoader()
        return loader.load(unet_name, WEIGHT_DTYPES[weight_dtype], "auto")[1:]


class DualCLIPLoader:
    """CLIP-L and T5, in either order."""

    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        file = stock_file("text_encoders")
        return {
            "required": {"clip_name1": file, "clip_name2": file, "type": (["flux"],)},
            "optional": {"device": (["default", "cpu"], {"default": "default"})},
        }

    def load(self, clip_name1: str, clip_name2: str, type: str, device: str = "default"):
        names = clip_name1, clip_name2
        return (text_encoders([host.model_path(name, "text_encoders") for name in names]),)


class CLIPLoader:
    """T5 alone, which Chroma reads."""

    FUNCTION = "load"
    RETURN_TYPES = ("CLIP",)

    @classmethod
    def INPUT_TYPES(cls):
        file = stock_file("text_encoders")
        return {
            "required": {"clip_name": file, "type": (["chroma"],)},
            "optional": {"device": (["default", "cpu"], {"default": "default"})},
        }

    def load(self, clip_name: str, type: str, device: str = "default"):
        return (text_encoders([host.model_path(clip_name, "text_encoders")], t5_alone=True),)


class VAELoader:
    FUNCTION = "load"
    RETURN_TYPES = ("VAE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae_name": stock_file("vae")}}

    def load(self, vae_name: str):
        return (HostVAE(load_vae(host.model_path(vae_name, "vae")), OffloadPolicy()),)


class CheckpointLoaderSimple:
    """All parts from one file."""

    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"ckpt_name": stock_file("checkpoints")}}

    def load(self, ckpt_name: str):
        path = host.model_path(ckpt_name, "checkpoints")
        name = f"checkpoints/{ckpt_name}"
        model = FluxFitTransformerLoader().load(name, AS_STORED, "auto")[1]
        t5_alone = not transformer_family(path).needs_pooled
        return (model, text_encoders([path], t5_alone), HostVAE(load_vae(path), OffloadPolicy()))


class LoraLoader:
    """A LoRA on the transformer and the text encoders."""

    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "lora_name": stock_file(FOLDER),
                "strength_model": ("FLOAT", STRENGTH),
                "strength_clip": ("FLOAT", STRENGTH),
            }
        }

    def load(
        self,
        model: FluxModel,
        clip: FluxTextEncoders,
        lora_name: str,
        strength_model: float,
        strength_clip: float,
    ):
        loader = FluxFitLoraLoader()
        return loader.load(model, lora_name, strength_model, strength_clip, True, clip)[:2]


class LoraLoaderModelOnly:
    """A LoRA on the transformer alone."""

    FUNCTION = "load"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "lora_name": stock_file(FOLDER),
                "strength_model": ("FLOAT", STRENGTH),
            }
        }

    def load(self, model: FluxModel, lora_name: str, strength_model: float):
        return FluxFitLoraLoader().load(model, lora_name, strength_model, 0.0, True)[:1]


STOCK_LOADERS: dict[str, Any] = {
    "CLIPLoader": CLIPLoader,
    "CheckpointLoaderSimple": CheckpointLoaderSimple,
    "DualCLIPLoader": DualCLIPLoader,
    "LoraLoader": LoraLoader,
    "LoraLoaderModelOnly": LoraLoaderModelOnly,
    "UNETLoader": UNETLoader,
    "VAELoader": VAELoader,
}
