"""The nodes by name."""

# ruff: noqa: E402  (the core must be importable before any node asks for it)
from .core_import import import_core

import_core()

from . import host, live_plan
from .calibration import FluxFitCalibrate, FluxFitMeasurePrecision
from .control import ControlNetUpscalerFP8, FluxFitControlNet
from .dataset import FluxFitDataset
from .loaders import FluxFitTransformerLoader, FluxLoaderFP8
from .lora import FluxFitLoraLoader, FluxFitMergeLoras
from .part_loaders import FluxFitTextEncoderLoader, FluxFitVAELoader
from .pictures import FluxFitCompare, FluxFitGrid
from .policy import FluxFitMemoryReport, OffloadPolicy
from .precision import FluxFitPrecisionPlan, FluxFitSaveQuantized
from .sampler import FluxSampler
from .text import FluxTextEncode
from .train import FluxFitResumeTraining, FluxFitTrainLora, FluxFitTrainSettings

host.register_pocket()
host.add_route("/fluxfit/plan", live_plan.live_plan)

#: Every node, by the name of its class, with the name that a person sees.
NODES: dict[type, str] = {
    FluxLoaderFP8: "FLUX Loader FP8",
    FluxTextEncode: "FLUX Text Encode",
    FluxSampler: "FLUX Sampler",
    ControlNetUpscalerFP8: "ControlNet Upscaler FP8",
    FluxFitControlNet: "FLUX ControlNet",
    FluxFitLoraLoader: "FLUX LoRA Loader",
    FluxFitMergeLoras: "FLUX Merge LoRAs",
    OffloadPolicy: "Offload Policy",
    FluxFitMemoryReport: "FLUX Memory Report",
    FluxFitTransformerLoader: "FLUX Transformer Loader",
    FluxFitTextEncoderLoader: "FLUX Text Encoder Loader",
    FluxFitVAELoader: "FLUX VAE Loader",
    FluxFitMeasurePrecision: "FLUX Measure Precision",
    FluxFitCalibrate: "FLUX Calibrate",
    FluxFitPrecisionPlan: "FLUX Precision Plan",
    FluxFitSaveQuantized: "FLUX Save Quantized",
    FluxFitCompare: "FLUX Compare",
    FluxFitGrid: "FLUX Grid",
    FluxFitDataset: "FLUX Dataset",
    FluxFitTrainSettings: "FLUX Train Settings",
    FluxFitTrainLora: "FLUX Train LoRA",
    FluxFitResumeTraining: "FLUX Resume Training",
}
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: name for node, name in NODES.items()}
