"""FLUX.1 in PyTorch, with a precision and a place for each part; knows nothing of ComfyUI."""

import os

# On a CPU, oneDNN and the layer between it and torch keep 1024 programs each, some for every size
# of picture: 2 MB more for each. A picture needs fewer than 64, and is no slower for it.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

if __name__ != "flux_core":  # a second copy would have a second set of pinned memory
    raise ImportError(f"import flux_core by that name, not as {__name__}")

from .calibration.calibrate import calibrate
from .calibration.second_moments import record_second_moments
from .checkpoint.load import (
    load_clip_l,
    load_controlnet,
    load_language_encoders,
    load_t5,
    load_text_encoders,
    load_transformer,
    load_vae,
)
from .checkpoint.save import save_module
from .errors import CheckpointError
from .lora import load_lora, merge_loras
from .models.compile import compile_blocks
from .models.controlnet import FluxControlNet
from .models.language_encoders import LanguageTextEncoders
from .models.text_encoders import TextEncoders
from .models.transformer import FluxTransformer
from .models.vae import AutoEncoder
from .offload import OffloadPolicy
from .pipeline import FluxPipeline, Images
from .quant import (
    PrecisionPlan,
    kernels_used,
    quantize,
    set_compute,
)
from .sampling.conditioning import Conditioning, Control
from .version import read_version

__version__ = read_version()

__all__ = [
    "AutoEncoder",
    "CheckpointError",
    "Conditioning",
    "Control",
    "FluxControlNet",
    "FluxPipeline",
    "FluxTransformer",
    "Images",
    "LanguageTextEncoders",
    "OffloadPolicy",
    "PrecisionPlan",
    "TextEncoders",
    "calibrate",
    "compile_blocks",
    "kernels_used",
    "load_clip_l",
    "load_controlnet",
    "load_language_encoders",
    "load_lora",
    "load_t5",
    "load_text_encoders",
    "load_transformer",
    "load_vae",
    "merge_loras",
    "quantize",
    "record_second_moments",
    "save_module",
    "set_compute",
]
