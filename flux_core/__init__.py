"""FLUX.1 in PyTorch, with a precision and a place for each part; knows nothing of ComfyUI."""

import importlib
import os
from typing import TYPE_CHECKING

# On a CPU, oneDNN and the layer between it and torch keep 1024 programs each, some for every size
# of picture: 2 MB more for each. A picture needs fewer than 64, and is no slower for it.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

if __name__ != "flux_core":  # a second copy would have a second set of pinned memory
    raise ImportError(f"import flux_core by that name, not as {__name__}")

from .version import read_version

if TYPE_CHECKING:
    from .calibration.calibrate import calibrate
    from .calibration.second_moments import record_second_moments
    from .checkpoint.load import (
        load_clip_l,
        load_controlnet,
        load_ip_adapter,
        load_language_encoders,
        load_redux,
        load_t5,
        load_text_encoders,
        load_transformer,
        load_vae,
        load_vision_encoder,
    )
    from .checkpoint.save import save_module
    from .errors import CheckpointError
    from .lora import LoraRegion, LoraUse, load_lora, merge_loras
    from .models.compile import compile_blocks
    from .models.controlnet import FluxControlNet
    from .models.ip_adapter import IPAdapter
    from .models.language_encoders import LanguageTextEncoders
    from .models.redux import ReduxModel
    from .models.text_encoders import TextEncoders
    from .models.transformer import FluxTransformer
    from .models.vae import AutoEncoder
    from .models.vision import VisionEncoder
    from .offload import OffloadPolicy
    from .pipeline import FluxPipeline
    from .pipeline_images import Images
    from .quant import (
        PrecisionPlan,
        kernels_used,
        quantize,
        set_compute,
    )
    from .sampling.conditioning import Conditioning, Control
    from .sampling.image_prompts import IPAdapterPrompt, ReduxPrompt

__version__ = read_version()

#: Where each name is, which is imported when it is asked for: torch takes seconds.
_PLACES = {
    "calibration.calibrate": ("calibrate",),
    "calibration.second_moments": ("record_second_moments",),
    "checkpoint.load": (
        "load_clip_l",
        "load_controlnet",
        "load_ip_adapter",
        "load_language_encoders",
        "load_redux",
        "load_t5",
        "load_text_encoders",
        "load_transformer",
        "load_vae",
        "load_vision_encoder",
    ),
    "checkpoint.save": ("save_module",),
    "errors": ("CheckpointError",),
    "lora": (
        "LoraRegion",
        "LoraUse",
        "load_lora",
        "merge_loras",
    ),
    "models.compile": ("compile_blocks",),
    "models.controlnet": ("FluxControlNet",),
    "models.ip_adapter": ("IPAdapter",),
    "models.language_encoders": ("LanguageTextEncoders",),
    "models.redux": ("ReduxModel",),
    "models.text_encoders": ("TextEncoders",),
    "models.transformer": ("FluxTransformer",),
    "models.vae": ("AutoEncoder",),
    "models.vision": ("VisionEncoder",),
    "offload": ("OffloadPolicy",),
    "pipeline": ("FluxPipeline",),
    "pipeline_images": ("Images",),
    "quant": (
        "PrecisionPlan",
        "kernels_used",
        "quantize",
        "set_compute",
    ),
    "sampling.conditioning": (
        "Conditioning",
        "Control",
    ),
    "sampling.image_prompts": (
        "IPAdapterPrompt",
        "ReduxPrompt",
    ),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "AutoEncoder",
    "CheckpointError",
    "Conditioning",
    "Control",
    "FluxControlNet",
    "FluxPipeline",
    "FluxTransformer",
    "IPAdapter",
    "IPAdapterPrompt",
    "Images",
    "LanguageTextEncoders",
    "LoraRegion",
    "LoraUse",
    "OffloadPolicy",
    "PrecisionPlan",
    "ReduxModel",
    "ReduxPrompt",
    "TextEncoders",
    "VisionEncoder",
    "calibrate",
    "compile_blocks",
    "kernels_used",
    "load_clip_l",
    "load_controlnet",
    "load_ip_adapter",
    "load_language_encoders",
    "load_lora",
    "load_redux",
    "load_t5",
    "load_text_encoders",
    "load_transformer",
    "load_vae",
    "load_vision_encoder",
    "merge_loras",
    "quantize",
    "record_second_moments",
    "save_module",
    "set_compute",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
