"""The nodes by name."""

# ruff: noqa: E402  (the core must be importable before any node asks for it)
from .core_import import import_core

import_core()

from . import host
from .calibration import FluxCalibrate, FluxMeasurePrecision
from .control import ControlNetUpscalerFP8, FluxControlNet
from .dataset import FluxDataset
from .loaders import FluxLoaderFP8, FluxTransformerLoader
from .lora import FluxLoraLoader, FluxMergeLoras
from .pictures import FluxCompare, FluxGrid
from .policy import FluxMemoryReport, OffloadPolicy
from .precision import FluxPrecisionPlan, FluxSaveQuantized
from .sampler import FluxSampler
from .text import FluxTextEncode
from .train import FluxResumeTraining, FluxTrainLora, FluxTrainSettings

host.register_pocket()

#: Every node, by the name of its class, with the name that a person sees.
NODES: dict[type, str] = {
    FluxLoaderFP8: "FLUX Loader FP8",
    FluxTextEncode: "FLUX Text Encode",
    FluxSampler: "FLUX Sampler",
    ControlNetUpscalerFP8: "ControlNet Upscaler FP8",
    FluxControlNet: "FLUX ControlNet",
    FluxLoraLoader: "FLUX LoRA Loader",
    FluxMergeLoras: "FLUX Merge LoRAs",
    OffloadPolicy: "Offload Policy",
    FluxMemoryReport: "FLUX Memory Report",
    FluxTransformerLoader: "FLUX Transformer Loader",
    FluxMeasurePrecision: "FLUX Measure Precision",
    FluxCalibrate: "FLUX Calibrate",
    FluxPrecisionPlan: "FLUX Precision Plan",
    FluxSaveQuantized: "FLUX Save Quantized",
    FluxCompare: "FLUX Compare",
    FluxGrid: "FLUX Grid",
    FluxDataset: "FLUX Dataset",
    FluxTrainSettings: "FLUX Train Settings",
    FluxTrainLora: "FLUX Train LoRA",
    FluxResumeTraining: "FLUX Resume Training",
}
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: name for node, name in NODES.items()}
