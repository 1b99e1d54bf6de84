"""Who may read whom in attention: masks and biases added up, over text, image and references.

    logits + sum of biases,   a boolean counts as 0 where it is true and as -inf where it is false

Tokens stand in the order text, image, references. Axis letters: B pictures, N text tokens, L image
tokens, R reference tokens, T all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from .conditioning import AttentionBias
from .latents import token_grid

#: A logit that leaves nothing of what it is of, in float16 as well.
HIDDEN = -30_000.0


def as_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask, boolean or added to logits, of any shape (...), as what is added to logits."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)


def added_up(masks: Sequence[Tensor | None]) -> Tensor | None:
    """One mask that says what several say together, each (1 or B, T or 1, T) or None.

    Booleans alone give a boolean, else the result is a bias in the dtype of the first bias. This is
    the one place where masks meet: attention biases, regions, and text that is padding.
    """
    there = [mask for mask in masks if mask is not None]
    if not there:
        return None
    biases = [mask for mask in there if mask.dtype != torch.bool]
    if not biases:
        total = there[0]
        for mask in there[1:]:
            total = total & mask
        return total
    dtype = biases[0].dtype
    bias = as_bias(there[0], dtype)
    for mask in there[1:]:
        bias = bias + as_bias(mask, dtype)
    return bias


def padding_mask(keep: Tensor | None, others: int, device: torch.device) -> Tensor | None:
    """Which text is read, booleans (1 or B, N), as a mask over all tokens, (1 or B, 1, T): the
    ``others`` behind it, image and references, are always read. None where all is."""
    if keep is None or bool(keep.all()):
        return None
    return F.pad(keep.bool(), (0, others), value=True)[:, None].to(device)


def hide_text(bias: AttentionBias, keep: Tensor) -> AttentionBias:
    """An attention bias under which text is not read where booleans (1 or B, N) say so; raises
    ``ValueError`` for a mask of another text."""
    values = bias.values if bias.values.ndim == 3 else bias.values[None]
    image = bias.rows * bias.columns
    if keep.shape[-1] != values.shape[-1] - image:
        raise ValueError(
            f"a mask of text has {keep.shape[-1]} tokens, the attention's bias "
            f"{values.shape[-1] - image}: they are not of one prompt"
        )
    hidden = added_up([values, padding_mask(keep, image, values.device)])
    assert hidden is not None
    return replace(bias, values=hidden)


def open_to(mask: Tensor | None, count: int) -> Tensor | None:
    """A mask (1 or B, T, T) under which so many tokens more are read by all, (1 or B, T, T +
    count)."""
    if mask is None or not count:
        return mask
    return F.pad(mask, (0, count), value=mask.dtype == torch.bool)


def attention_mask(
    bias: AttentionBias | None,
    text_tokens: int,
    height: int,
    width: int,
    references: int,
    device: torch.device,
    dtype: torch.dtype,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> Tensor | None:
    """An attention bias (1 or B, T, T) for the tokens of a picture of ``height`` x ``width``
    latents, stretched bilinearly as ComfyUI does; references, behind them, are open to all."""
    if bias is None:
        return None
    values = bias.values if bias.values.ndim == 3 else bias.values[None]
    text = values.shape[-1] - bias.rows * bias.columns
    if text != text_tokens or values.shape[-1] != values.shape[-2]:
        raise ValueError(
            f"attention_mask is {tuple(values.shape)}, expected {text_tokens} text tokens and "
            f"{bias.rows}x{bias.columns} image tokens on both axes"
        )
    grid = token_grid(height, width, geometry)
    is_bool = values.dtype == torch.bool
    if grid != (bias.rows, bias.columns):
        source = (bias.rows, bias.columns)
        values = values.float().clamp_min(HIDDEN)  # infinities times a weight of 0 are no numbers
        for axis in (1, 2):
            values = stretched(values, axis, text, source, grid)
        values = values > 0.5 if is_bool else values
    if references:
        values = F.pad(values, (0, references, 0, references), value=is_bool)
    # cast once, so that no block has to
    return values.to(device) if is_bool else values.to(device, dtype)


def stretched(
    mask: Tensor, axis: int, text: int, source: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """A mask (B, T, T) with the image tokens on one axis interpolated from one grid to another."""
    mask = mask.movedim(axis, -1)
    words, image = mask[..., :text], mask[..., text:]
    image = F.interpolate(image.unflatten(-1, source), grid, mode="bilinear").flatten(-2)
    return torch.cat([words, image], dim=-1).movedim(-1, axis)
