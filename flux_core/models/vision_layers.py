"""Layers of vision encoders, that are offloaded as blocks of FLUX.1 are.

Apart from ``vision``, since ``transformers``' models take seconds to import.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from .blocks import count_weights
from .vision_config import VisionConfig

#: Widths from which on CLIP was trained by OpenCLIP, with the exact GELU.
OPENCLIP_WIDTH = 1280


class CLIPVisionLayer(CLIPEncoderLayer):
    """A layer of CLIP that says of itself what a block of FLUX.1 does (``models.blocks.Block``)."""

    def modulation_layers(self) -> list[nn.Module]:
        return []

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]:
        return 2.0 * count_weights(self) * image_tokens, 0.0  # its attention is small


class SiglipVisionLayer(SiglipEncoderLayer):
    """A layer of SigLIP that says of itself what a block of FLUX.1 does."""

    def modulation_layers(self) -> list[nn.Module]:
        return []

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]:
        return 2.0 * count_weights(self) * image_tokens, 0.0  # its attention is small


class VisionParts(NamedTuple):
    """What a vision encoder is made of; ``first_norm`` is CLIP's alone, ``head`` SigLIP's."""

    embeddings: nn.Module
    encoder: nn.Module
    first_norm: nn.Module | None
    last_norm: nn.Module
    head: nn.Module | None


def vision_parts(config: VisionConfig) -> VisionParts:
    """The parts of ``transformers``' model of a size."""
    sizes: dict[str, Any] = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
    }
    if config.siglip:
        model: Any = SiglipVisionModel(
            SiglipVisionConfig(**sizes, vision_use_head=config.pooling)  # type: ignore[call-arg]
        )
        layer: type = SiglipVisionLayer
    else:
        act = "gelu" if config.hidden_size >= OPENCLIP_WIDTH else "quick_gelu"
        model = CLIPVisionModel(CLIPVisionConfig(**sizes, hidden_act=act))
        layer = CLIPVisionLayer
    inner = getattr(model, "vision_model", model)  # transformers 5 has no inner model
    for each in inner.encoder.layers:
        each.__class__ = layer
    return VisionParts(
        inner.embeddings,
        inner.encoder,
        getattr(inner, "pre_layrnorm", None),
        inner.post_layernorm,
        getattr(inner, "head", None),
    )
