"""The nodes by name."""

# ruff: noqa: E402  (the core must be importable before any node asks for it)
from .core_import import import_core

import_core()

from . import host, live_plan, receipts
from .batch import FluxFitBatch
from .calibration import FluxFitCalibrate, FluxFitMeasurePrecision
from .control import ControlNetUpscalerFP8, FluxFitControlNet
from .dataset import FluxFitDataset
from .flex import FluxFitFlexControl
from .guidance import FluxFitGuidance, FluxFitNAG
from .inpaint import (
    FluxFitColorMatch,
    FluxFitCropForInpaint,
    FluxFitDifferentialDiffusion,
    FluxFitKeepPixels,
    FluxFitStitch,
)
from .ip_adapter import FluxFitApplyIPAdapter, FluxFitIPAdapterLoader
from .large import FluxFitHiresFix, FluxFitTiledDrawing
from .loaders import FluxFitTransformerLoader, FluxLoaderFP8
from .lora import FluxFitLoraLoader, FluxFitMergeLoras
from .lora_control import FluxFitLoraControl
from .part_loaders import FluxFitTextEncoderLoader, FluxFitVAELoader
from .pictures import FluxFitCompare, FluxFitGrid
from .policy import FluxFitMemoryReport, OffloadPolicy
from .precision import FluxFitPrecisionPlan, FluxFitSaveQuantized
from .reference import FluxFitReference, FluxFitReferenceAttention
from .regions import FluxFitRegion, FluxFitRegionalPrompts
from .sampler import FluxSampler
from .tables import FluxFitTable
from .text import FluxTextEncode
from .train import FluxFitResumeTraining, FluxFitTrainLora, FluxFitTrainSettings
from .vision import FluxFitRedux, FluxFitReduxLoader, FluxFitVisionLoader

host.register_pocket()
host.register_ip_adapters()
host.add_route("/fluxfit/plan", live_plan.live_plan)
receipts.register()

#: Every node, by the name of its class, with the name that a person sees.
NODES: dict[type, str] = {
    FluxLoaderFP8: "FLUX Loader FP8",
    FluxTextEncode: "FLUX Text Encode",
    FluxSampler: "FLUX Sampler",
    FluxFitReference: "FLUX Reference",
    FluxFitReferenceAttention: "FLUX Reference Attention",
    ControlNetUpscalerFP8: "ControlNet Upscaler FP8",
    FluxFitControlNet: "FLUX ControlNet",
    FluxFitFlexControl: "FLUX Flex.2 Control",
    FluxFitLoraLoader: "FLUX LoRA Loader",
    FluxFitLoraControl: "FLUX LoRA Control",
    FluxFitMergeLoras: "FLUX Merge LoRAs",
    FluxFitVisionLoader: "FLUX Vision Loader",
    FluxFitReduxLoader: "FLUX Redux Loader",
    FluxFitRedux: "FLUX Redux",
    FluxFitIPAdapterLoader: "FLUX IP-Adapter Loader",
    FluxFitApplyIPAdapter: "FLUX Apply IP-Adapter",
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
    FluxFitTable: "FLUX Table",
    FluxFitBatch: "FLUX Batch",
    FluxFitDataset: "FLUX Dataset",
    FluxFitTrainSettings: "FLUX Train Settings",
    FluxFitTrainLora: "FLUX Train LoRA",
    FluxFitResumeTraining: "FLUX Resume Training",
    FluxFitRegion: "FLUX Region",
    FluxFitRegionalPrompts: "FLUX Regional Prompts",
    FluxFitGuidance: "FLUX Guidance Options",
    FluxFitNAG: "FLUX NAG",
    FluxFitTiledDrawing: "FLUX Tiled Drawing",
    FluxFitHiresFix: "FLUX Hires Fix",
    FluxFitDifferentialDiffusion: "FLUX Differential Diffusion",
    FluxFitCropForInpaint: "FLUX Crop for Inpaint",
    FluxFitStitch: "FLUX Stitch",
    FluxFitKeepPixels: "FLUX Keep Pixels",
    FluxFitColorMatch: "FLUX Color Match",
}
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: name for node, name in NODES.items()}
