"""A layer of T5 that is offloaded as a block of FLUX.1 is.

Apart from ``text_encoders``, since ``transformers``' models take seconds to import and many
commands need none.
"""

from __future__ import annotations

from torch import nn
from transformers.models.t5.modeling_t5 import T5Block

from .blocks import count_weights


class T5Layer(T5Block):
    """A layer of T5 that says of itself what a block of FLUX.1 does (``models.blocks.Block``)."""

    def modulation_layers(self) -> list[nn.Module]:
        return []

    def flops(self, image_tokens: int, text_tokens: int) -> tuple[float, float]:
        return 2.0 * count_weights(self) * text_tokens, 0.0  # its attention is small
