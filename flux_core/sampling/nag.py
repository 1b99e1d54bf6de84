"""Normalized attention guidance: negative prompts without a second call of the model.

    z = s z+ - (s - 1) z-;   z <- z min(|z|, tau |z+|) / |z|;   out = alpha z + (1 - alpha) z+

z+ and z- are attention's output on image tokens with the positive and the negative text, | | the L1
norm over a token (arXiv:2505.21179). Only attention is made twice: the tokens stand as negative
text, positive text, image, each once in every linear layer, and each text reads itself and the
image. The negative text is modulated as the positive one is.

Axis letters: B pictures, N negative text tokens, T all tokens, H heads, d width of a head, D = H d.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..bounds import check_number, check_span
from ..models.layers import apply_rotary, attend_rotated
from ..models.patches import EmbeddedInputs, ForwardState, RunBlock, Tokens

#: Norms are taken for at least this.
LEAST_NORM = 1e-6


@dataclass(frozen=True)
class NormalizedAttentionGuidance:
    """Numbers of the formula above, as the host has them; ``start`` and ``end`` are shares of the
    schedule, from 0 (noise) to 1. Raises ``ValueError`` for numbers out of range."""

    scale: float = 5.0
    tau: float = 1.5
    alpha: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.scale, "NAG's scale", 0, 1000)
        check_number(self.tau, "NAG's tau", 1, 1000)
        check_number(self.alpha, "NAG's alpha", 0, 1)
        check_span(self.start, self.end, "NAG's")

    @property
    def numbers(self) -> tuple[float, float, float]:
        """Scale, tau and alpha."""
        return float(self.scale), float(self.tau), float(self.alpha)


def normalized_guidance(positive: Tensor, negative: Tensor, numbers: Tensor) -> Tensor:
    """The guided output of attention, (B, L, D), from those with either text, each (B, L, D).

    ``numbers`` (3,) are scale, tau and alpha, float32. Computed in float32.
    """
    scale, tau, alpha = numbers.unbind()
    ours = positive.float()
    guided = negative.float() - ours
    guided.mul_(1 - scale).add_(ours)
    before = ours.abs().sum(-1, keepdim=True).clamp_min(LEAST_NORM)
    ratio = guided.abs().sum(-1, keepdim=True).clamp_min(LEAST_NORM) / before
    guided.mul_(torch.minimum(ratio, tau) / ratio)
    return guided.sub_(ours).mul_(alpha).add_(ours).to(positive.dtype)


class NormalizedAttention:
    """Attention of all blocks of a run with a negative text in front of the positive one.

    It stands around the blocks (``models.patches``). Its numbers are a tensor, so that a compiled
    block reads other ones without being compiled again.
    """

    def __init__(
        self,
        numbers: Tensor,
        negative_tokens: int,
        text_tokens: int,
        positive_mask: Tensor | None = None,
        negative_mask: Tensor | None = None,
    ) -> None:
        """``numbers`` (3,); ``text_tokens`` are those of both texts. The masks (1 or B, T', T') are
        over either text and what follows both, as ``layers.attention`` has them."""
        self.numbers, self.negative, self.text = numbers, negative_tokens, text_tokens
        self.positive_mask, self.negative_mask = positive_mask, negative_mask

    @property
    def size_key(self) -> Hashable:
        """What tells those that take as much memory from others."""
        masks = (self.positive_mask, self.negative_mask)
        shapes = tuple(None if mask is None else (mask.shape, mask.dtype) for mask in masks)
        return self.negative, self.text, shapes

    def embedded(self, inputs: EmbeddedInputs) -> EmbeddedInputs:
        return inputs

    def block(
        self, kind: str, index: int, tokens: Tokens, state: ForwardState, run: RunBlock
    ) -> Tokens:
        """A block's tokens after it, each (B, T, D), with this attention."""
        return run(tokens, replace(state, mask=None, attend=self))

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rotary: tuple[Tensor, Tensor],
        mask: Tensor | None = None,
    ) -> Tensor:
        """Queries, keys and values (B, T, H, d) to (B, T, H * d); ``mask`` is not read."""
        first, text = self.negative, self.text
        q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
        ours = attend_rotated(q[:, first:], k[:, first:], v[:, first:], self.positive_mask)
        keys, values = (torch.cat([x[:, :first], x[:, text:]], dim=1) for x in (k, v))
        of_text = of_image = self.negative_mask
        if self.negative_mask is not None and self.negative_mask.shape[1] > 1:
            of_text, of_image = self.negative_mask[:, :first], self.negative_mask[:, first:]
        theirs = attend_rotated(q[:, text:], keys, values, of_image)
        negative_text = attend_rotated(q[:, :first], keys, values, of_text)
        positive_text, image = ours.split([text - first, q.shape[1] - text], dim=1)
        guided = normalized_guidance(image, theirs, self.numbers)
        return torch.cat([negative_text, positive_text, guided], dim=1)
