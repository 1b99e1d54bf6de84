"""Pictures as part of a prompt: Redux's tokens behind T5's.

    context = [T5's tokens | a picture's | another's ...]
    multiply     tokens * strength
    attn_bias    log(strength) on the logits of text and image onto them

as ComfyUI's StyleModelApply has both. A grid of fewer tokens, averaged over neighbours, leaves the
prompt more to say; a mask over the picture leaves tokens out. Axis letters: B pictures drawn, n
pictures that prompt, N text tokens, M tokens of pictures, T all tokens, C and D widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bounds import check_number
from ..models.redux import ReduxModel
from ..offload import OffloadRunner, Work
from ..offload.activations import on_meta, peak_bytes
from ..offload.workload import counted
from ..quant import set_compute
from .conditioning import AttentionBias, Conditioning

MULTIPLY, ATTENTION_BIAS = "multiply", "attn_bias"
#: How a strength counts, by the host's names.
STRENGTH_TYPES = (MULTIPLY, ATTENTION_BIAS)
#: How several pictures come together.
MERGES = ("side by side", "sum")


def redux_work(redux: ReduxModel, tokens: int) -> Work:
    """Tokens of one picture."""

    def count() -> int:
        small = set_compute(on_meta(redux), "dequantize")
        shape = (1, tokens, redux.config.embed_dim)
        return peak_bytes(lambda: small(torch.empty(shape, device="meta", dtype=redux.dtype)))

    return Work(counted(redux, tokens, count), image_tokens=tokens, text_tokens=0)


@torch.no_grad()
def redux_tokens(runner: OffloadRunner, redux: ReduxModel, features: Tensor) -> Tensor:
    """A vision encoder's tokens of pictures (n, M, D) as context (n, M, C), on the CPU.

    Raises ``ValueError`` for tokens of another encoder.
    """

    def encode(_: object) -> Tensor:
        rows = [redux(one.to(runner.device, redux.dtype)).cpu() for one in features.split(1)]
        return torch.cat(rows)

    return runner.run("redux", [redux], encode, redux_work(redux, features.shape[1]))


def picture_grid(tokens: Tensor) -> int:
    """Tokens along a side of pictures (n, M, C); raises ``ValueError`` where they are no square."""
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise ValueError(
            f"a picture has {tokens.shape[1]} tokens, which are no square: its grid cannot be made "
            "smaller nor masked (is it of CLIP? Redux reads SigLIP)"
        )
    return side


def mask_grid(mask: Tensor, side: int, crop: bool = True) -> Tensor:
    """Masks (1 or n, H, W) as shares of tokens (1 or n, side, side), cut as pictures are."""
    mask = mask.float().reshape(-1, *mask.shape[-2:])
    if crop:
        height, width = mask.shape[-2:]
        small = min(height, width)
        top, left = (height - small) // 2, (width - small) // 2
        mask = mask[:, top : top + small, left : left + small]
    return F.interpolate(mask[:, None], (side, side), mode="area")[:, 0]


def on_grid(
    tokens: Tensor, grid: int = 0, mask: Tensor | None = None, crop: bool = True
) -> list[Tensor]:
    """Tokens of pictures (n, M, C) averaged to ``grid`` x ``grid`` of them, those left out that a
    mask (1 or n, H, W) does not touch: (M', C) of each.

    ``grid`` 0 keeps them all. Averages count tokens by how much of them the mask covers. Raises
    ``ValueError`` for a grid larger than there is, and a mask that leaves nothing.
    """
    if not grid and mask is None:
        return list(tokens)
    side = picture_grid(tokens)
    check_number(grid, "the grid of a picture's tokens", 0, side, whole=True)
    shares = torch.ones(1, side, side) if mask is None else mask_grid(mask, side, crop)
    if len(shares) not in (1, len(tokens)):
        raise ValueError(f"{len(shares)} masks for {len(tokens)} pictures, expected 1 or all")
    shares = shares.to(tokens.device).expand(len(tokens), -1, -1)[:, None]
    planes = tokens.float().unflatten(1, (side, side)).movedim(-1, 1)
    if grid and grid != side:
        size = (grid, grid)
        total = F.interpolate(shares, size, mode="area")
        planes = F.interpolate(planes * shares, size, mode="area") / total.clamp_min(1e-12)
        shares = total
    rows = planes.flatten(2).transpose(1, 2).to(tokens.dtype)
    kept = shares.flatten(1) > 0
    if not bool(kept.any(dim=1).all()):
        raise ValueError("the mask of a picture covers nothing of it: its tokens are all left out")
    return [row[keep] for row, keep in zip(rows, kept, strict=True)]


def merged(
    pictures: Sequence[Tensor], weights: Sequence[float] | None = None, merge: str = MERGES[0]
) -> Tensor:
    """Tokens (M, C) of pictures as one context, (1, M', C).

    Args:
        weights: of each picture, 1 unless given.
        merge: ``side by side``, or ``sum``, as diffusers' Redux pipeline blends pictures.
    """
    if merge not in MERGES:
        raise ValueError(f"merge is {merge!r}, expected one of {', '.join(MERGES)}")
    factors = [1.0] * len(pictures) if weights is None else list(weights)
    if len(factors) != len(pictures):
        raise ValueError(f"{len(factors)} weights for {len(pictures)} pictures, expected one each")
    for factor in factors:
        check_number(factor, "a picture's weight", -1000, 1000)
    scaled = [
        tokens if factor == 1 else tokens * factor
        for tokens, factor in zip(pictures, factors, strict=True)
    ]
    if merge == MERGES[0]:
        return torch.cat(scaled)[None]
    if len({len(tokens) for tokens in scaled}) != 1:
        raise ValueError("pictures with unlike masks have unlike tokens, which cannot be summed")
    return torch.stack(scaled).sum(0, keepdim=True)


def append_tokens(
    context: Tensor,
    attention: AttentionBias | None,
    tokens: Tensor,
    strength: float = 1.0,
    strength_type: str = MULTIPLY,
) -> tuple[Tensor, AttentionBias | None]:
    """Context (1 or B, N, C) with tokens (1, M, C) behind it, and the attention's bias.

    What a picture's tokens see is not changed, also where others are biased towards them; values
    are float16, as the host has them. Raises ``ValueError`` for tokens of another width.
    """
    if strength_type not in STRENGTH_TYPES:
        expected = ", ".join(STRENGTH_TYPES)
        raise ValueError(f"strength_type is {strength_type!r}, expected one of {expected}")
    check_number(strength, "the strength of a picture", 0, 1000)
    if tokens.shape[-1] != context.shape[-1]:
        raise ValueError(
            f"tokens of the picture are {tokens.shape[-1]} wide, the prompt's {context.shape[-1]}: "
            "the Redux model and the text encoders are not of one model"
        )
    biased = strength_type == ATTENTION_BIAS
    if not biased and strength != 1:
        tokens = tokens * strength
    added = tokens.to(context).expand(len(context), -1, -1)
    if attention is not None or (biased and strength != 1):
        attention = widened(
            attention, context.shape[1], tokens.shape[1], strength if biased else 1.0
        )
    return torch.cat([context, added], dim=1), attention


def widened(
    attention: AttentionBias | None, text: int, more: int, strength: float
) -> AttentionBias:
    """An attention bias with room for ``more`` tokens behind ``text`` ones, and log(strength) on
    all that others look at them with."""
    old = attention or AttentionBias(torch.zeros(1, text + 1, text + 1), 1, 1)
    values = old.values if old.values.ndim == 3 else old.values[None]
    if values.shape[-1] != text + old.rows * old.columns:
        raise ValueError(
            f"attention_mask is {tuple(values.shape)}, expected {text} text tokens and "
            f"{old.rows}x{old.columns} image tokens"
        )
    values = values.to(torch.float16)
    if old.values.dtype == torch.bool:
        values = values.log()
    total = values.shape[-1] + more
    wide = values.new_zeros(len(values), total, total)
    others = torch.tensor([*range(text), *range(text + more, total)])
    wide[:, others[:, None], others] = values
    wide[:, others, text : text + more] = math.log(strength) if strength else -math.inf
    return AttentionBias(wide, old.rows, old.columns)


def with_tokens(
    prompt: Conditioning, tokens: Tensor, strength: float = 1.0, strength_type: str = MULTIPLY
) -> Conditioning:
    """A prompt with tokens of pictures (1, M, C) behind it; errors as ``append_tokens``."""
    context, attention = append_tokens(
        prompt.context, prompt.attention, tokens, strength, strength_type
    )
    text_mask = prompt.text_mask
    if text_mask is not None:  # pictures are no padding
        text_mask = F.pad(text_mask.bool(), (0, tokens.shape[1]), value=True)
    return replace(prompt, context=context, attention=attention, text_mask=text_mask)
