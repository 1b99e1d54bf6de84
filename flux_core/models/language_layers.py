"""Layers of language models that are offloaded as blocks of FLUX.1 are.

Apart from ``language``, since ``transformers``' models take seconds to import and many commands
need none.
"""

from __future__ import annotations

from torch import nn
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from .blocks import count_weights


class LanguageLayer(nn.Module):
    """What a layer says of itself (``models.blocks.Block``)."""

    def modulation_layers(self) -> list[nn.Module]:
        return []

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]:
        return 2.0 * count_weights(self) * text_tokens, 0.0  # its attention is small


class QwenLayer(LanguageLayer, Qwen3DecoderLayer):
    """A layer of Qwen3."""


class MistralLayer(LanguageLayer, MistralDecoderLayer):
    """A layer of Mistral."""
