"""Attention of a block's tokens onto those of pictures, beside its own (IP-Adapters).

    out = sum_a scale_a softmax(q K_a^T / sqrt(d)) V_a

The queries are the block's, normalised and without positions. Keys and values do not change from
step to step, so a run computes them once, and the blocks are given them as they are given
modulations: nothing of an adapter is on the device while they compute. A scale is a number a token,
so that weights, spans and masks change numbers and no shape.

Axis letters: B pictures, Q tokens of a block, T tokens of the pictures that prompt, H heads, d
width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor
from torch.nn import functional as F


class PictureAttention(NamedTuple):
    """What one adapter brings to one block.

    ``keys`` and ``values`` are (1 or B, T, H, d), ``scale`` is (1 or B, Q, 1). What comes of it is
    added to the block's attention, or with ``after_block`` to the tokens that leave the block.
    """

    keys: Tensor
    values: Tensor
    scale: Tensor
    after_block: bool = False


class PictureSource(Protocol):
    """What knows the adapters of every block."""

    def of(self, kind: str, index: int) -> Sequence[PictureAttention]:
        """Those of block ``index`` of a kind (``patches.DOUBLE``, ``patches.SINGLE``)."""
        ...


def attend_pictures(
    adapters: Sequence[PictureAttention], q: Tensor, out: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The attention's output (B, Q, H * d) with what adapters add to it for queries (B, Q, H, d),
    and what they add to the tokens that leave the block, (B, Q, H * d) or None."""
    after: Tensor | None = None
    q = q.transpose(1, 2)
    for adapter in adapters:
        sides = (len(q), -1, -1, -1)
        k, v = (x.transpose(1, 2).expand(sides) for x in (adapter.keys, adapter.values))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        seen = seen * adapter.scale.to(seen.dtype)
        if not adapter.after_block:
            out = out + seen
        else:
            after = seen if after is None else after + seen
    return out, after
