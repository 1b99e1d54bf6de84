"""Stand-ins for the host's nodes for pictures as prompts, over our own models."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flux_core.checkpoint.build import AS_STORED
from flux_core.sampling.redux import MERGES, STRENGTH_TYPES

from ..vision import (
    CROPS,
    STYLE_FOLDER,
    VISION_FOLDER,
    FluxFitRedux,
    FluxFitReduxLoader,
    FluxFitVisionLoader,
)
from .stock_loaders import stock_file


class CLIPVisionLoader:
    """A vision encoder of models/clip_vision."""

    FUNCTION = "load"
    RETURN_TYPES = ("CLIP_VISION",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"clip_name": stock_file(VISION_FOLDER)}}

    def load(self, clip_name: str):
        return FluxFitVisionLoader().load(clip_name, AS_STORED)


class CLIPVisionEncode:
    """What a vision encoder sees in pictures."""

    FUNCTION = "encode"
    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "clip_vision": ("CLIP_VISION",),
                "image": ("IMAGE",),
                "crop": (list(CROPS),),
            }
        }

    def encode(self, clip_vision: Any, image: Tensor, crop: str):
        return (clip_vision.encode_image(image, crop=crop == "center"),)


class StyleModelLoader:
    """A Redux model of models/style_models."""

    FUNCTION = "load"
    RETURN_TYPES = ("STYLE_MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"style_model_name": stock_file(STYLE_FOLDER)}}

    def load(self, style_model_name: str):
        return FluxFitReduxLoader().load(style_model_name, AS_STORED)


class StyleModelApply:
    """Pictures in a prompt."""

    FUNCTION = "apply"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "style_model": ("STYLE_MODEL",),
                "clip_vision_output": ("CLIP_VISION_OUTPUT",),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.001}),
                "strength_type": (list(STRENGTH_TYPES),),
            }
        }

    def apply(
        self,
        conditioning: list,
        style_model: Any,
        clip_vision_output: Any,
        strength: float,
        strength_type: str = STRENGTH_TYPES[0],
    ):
        redux = FluxFitRedux()
        return redux.apply(
            conditioning,
            style_model,
            strength,
            strength_type,
            0,
            MERGES[0],
            clip_vision_output=clip_vision_output,
        )


STOCK_VISION: dict[str, Any] = {
    "CLIPVisionEncode": CLIPVisionEncode,
    "CLIPVisionLoader": CLIPVisionLoader,
    "StyleModelApply": StyleModelApply,
    "StyleModelLoader": StyleModelLoader,
}
