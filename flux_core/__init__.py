"""FLUX.1 in PyTorch, with a precision and a place for each part; knows nothing of ComfyUI."""

from .calibrated import calibrate
from .checkpoint.errors import CheckpointError
from .checkpoint.save import save_module
from .compiled import compile_blocks
from .controlnet import FluxControlNet
from .loaders import (
    load_clip,
    load_controlnet,
    load_t5,
    load_text_encoders,
    load_transformer,
    load_vae,
)
from .lora import load_lora, merge_loras
from .offload import OffloadPolicy
from .pipeline import FluxPipeline, Images
from .quant import (
    PrecisionPlan,
    arithmetic_of,
    quantize,
    record_moments,
    set_compute,
)
from .sampling import Conditioning, Control
from .text import TextEncoders
from .transformer import FluxTransformer
from .vae import AutoEncoder

__all__ = [
    "AutoEncoder",
    "CheckpointError",
    "Conditioning",
    "Control",
    "FluxControlNet",
    "FluxPipeline",
    "FluxTransformer",
    "Images",
    "OffloadPolicy",
    "PrecisionPlan",
    "TextEncoders",
    "arithmetic_of",
    "calibrate",
    "compile_blocks",
    "load_clip",
    "load_controlnet",
    "load_lora",
    "load_t5",
    "load_text_encoders",
    "load_transformer",
    "load_vae",
    "merge_loras",
    "quantize",
    "record_moments",
    "save_module",
    "set_compute",
]
