"""GPTQ: rounding that makes good what it loses, by the second moments of what a layer reads.

The nearest codes make each weight's error least. What counts is the output's, whose mean square is

    E = tr (W - W') M (W - W')^T,   M = mean of x x^T over inputs x

Columns are rounded one after another, and what one loses is made good by those not yet rounded, as
far as their inputs go together (GPTQ, arXiv:2210.17323):

    w_j -= (w_k - w_k') U_kj / U_kk  for j > k,   U^T U = M^-1

M, half the Hessian of E for a row, is kept in blocks of columns, in which weights are rotated as
well: whole, it would take as much as the model. Axis letters: N blocks, C columns of one, R rows
(out features).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .format import Format, RowFormat, row_tensors
from .hadamard import BLOCK
from .notices import warn_once

#: Added to M's diagonal, as a share of its mean: inputs that were not seen count for so much.
DAMPING = 0.01
#: Columns whose losses reach the columns behind them in one product.
GROUP = 32


def columns_of(width: int) -> int:
    """Columns of a block, for a layer's in features."""
    return math.gcd(width, BLOCK)


def second_moments_of(x: Tensor) -> Tensor:
    """The sum of x x^T in blocks, (N, C, C) float32, of inputs (..., in)."""
    blocks = x.flatten(0, -2).float().unflatten(1, (-1, columns_of(x.shape[-1])))
    return torch.einsum("tnc,tnd->ncd", blocks, blocks)


def gptq_quantize(format: Format, weight: Tensor, second_moments: Tensor) -> dict[str, Tensor]:
    """The tensors of a weight (out, in) as ``Format.quantize`` names them, rounded by GPTQ.

    A format whose columns cannot be rounded one after another has the nearest codes, and the log
    says so.
    """
    if isinstance(format, RowFormat):
        return row_tensors(*gptq_codes(format, weight, second_moments))
    warn_once(f"{format.name} cannot be rounded column by column: its nearest codes are taken")
    return format.quantize(weight)


def gptq_codes(
    format: RowFormat, weight: Tensor, second_moments: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Codes (out, in) and scales (out, 1) or None that lose least for inputs.

    Rows for which the nearest codes lose less have those.

    Args:
        second_moments: (N, C, C) float32, as ``second_moments_of`` adds them up; codes are computed
            on their device.
    """
    scaled, scale = format.prepare(weight.to(second_moments.device))
    rotated = format.rotate(format.rotate(second_moments).transpose(1, 2))
    codes = round_in_turn(format, scaled, damped(rotated))
    nearest = format.encode(scaled)
    better = loss(scaled, codes, rotated) < loss(scaled, nearest, rotated)
    codes = torch.where(better, codes.float(), nearest.float()).to(format.storage)
    return codes.to(weight.device), None if scale is None else scale.to(weight.device)


def second_moments_error(second_moments: Tensor, width: int) -> str:
    """Why moments (N, C, C) do not serve a layer of a width; empty where they do."""
    count, columns, _ = second_moments.shape
    if count * columns != width or columns != columns_of(width):
        return f"moments are of {count} times {columns} inputs, the layer reads {width}"
    return (
        ""
        if bool(second_moments.isfinite().all())
        else "the inputs that were recorded are not finite"
    )


def damped(second_moments: Tensor) -> Tensor:
    """Moments (N, C, C) that can be inverted.

    Those of inputs that were all zero become the identity.
    """
    mean = second_moments.diagonal(dim1=1, dim2=2).mean(1)
    share = torch.where(mean > 0, DAMPING * mean, torch.ones_like(mean))
    return second_moments + share[:, None, None] * torch.eye(
        second_moments.shape[1], device=second_moments.device
    )


def round_in_turn(format: RowFormat, scaled: Tensor, second_moments: Tensor) -> Tensor:
    """Codes (R, in) of columns rounded in turn, those with the largest inputs first."""
    columns = second_moments.shape[1]
    order = second_moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True)  # (N, C)
    sorted_rows = second_moments.gather(1, order[:, :, None].expand_as(second_moments))
    second_moments = sorted_rows.gather(2, order[:, None, :].expand_as(second_moments))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(second_moments))
    factor = torch.linalg.cholesky(inverse, upper=True)
    left = column_blocks(scaled, columns)  # (N, R, C)
    places = order[:, None, :].expand_as(left)
    left = left.gather(2, places)
    codes = torch.empty_like(left, dtype=format.storage)
    for start in range(0, columns, GROUP):
        end = min(columns, start + GROUP)
        lost = torch.empty_like(left[:, :, start:end])
        for k in range(start, end):
            code = format.encode(left[:, :, k])
            codes[:, :, k] = code
            error = (left[:, :, k] - code.float()) / factor[:, k, k, None]
            left[:, :, k + 1 : end] -= error[:, :, None] * factor[:, k, None, k + 1 : end]
            lost[:, :, k - start] = error
        left[:, :, end:] -= lost @ factor[:, start:end, end:]
    # codes of one byte can be placed as bytes on every device
    back = torch.empty_like(codes, dtype=torch.uint8)
    back.scatter_(2, places, codes.view(torch.uint8))
    return back.view(format.storage).transpose(0, 1).flatten(1)


def column_blocks(weight: Tensor, columns: int) -> Tensor:
    """(R, in) as (N, R, C)."""
    return weight.unflatten(1, (-1, columns)).transpose(0, 1)


def loss(scaled: Tensor, codes: Tensor, second_moments: Tensor) -> Tensor:
    """The mean square of each row's output error, (R, 1), in units of its scale."""
    error = column_blocks(scaled - codes.float(), second_moments.shape[1])
    return torch.einsum("nrc,ncd,nrd->r", error, second_moments, error)[:, None]
