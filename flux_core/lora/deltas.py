"""What a LoRA adds to one layer's weight, in the form in which it is cheapest to add.

    low rank   up down              LoRA; LoHa as (u1 d1) * (u2 d2), of rank r1 r2
    Kronecker  w1 x w2              LoKr
    dense      a matrix             .diff

Weights are (out, in). ``rows`` says which rows of a fused layer are meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Delta:
    """An addition to rows of a layer: the forms that it has, each in float32.

    ``magnitude`` (DoRA): what the norms of the weight become after the addition, (rows, 1) for the
    norms of rows, (1, in) for those of columns. ``bias`` (rows,) is added to the bias.
    """

    rows: tuple[int, int]
    down: Tensor | None = None
    up: Tensor | None = None
    kron: tuple[Tensor, Tensor] | None = None
    diff: Tensor | None = None
    bias: Tensor | None = None
    magnitude: Tensor | None = None

    @property
    def width(self) -> int:
        """Inputs that it reads; 0 where it reads none."""
        for matrix in (self.down, self.diff):
            if matrix is not None:
                return matrix.shape[-1]
        return 0

    def weight(self) -> Tensor | None:
        """The addition as one matrix (rows, in); None where there is none."""
        if self.up is not None and self.down is not None:
            return self.up @ self.down
        if self.kron is not None:
            return torch.kron(*self.kron)
        return self.diff


def make_delta(
    kinds: Mapping[str, Tensor],
    rows: tuple[int, int],
    width: int,
    swap: bool = False,
    wider: bool = False,
) -> Delta:
    """One layer's tensors as a delta.

    Args:
        kinds: tensors by kind, as ``file`` names them.
        rows: first row and number of rows; ``width`` is the layer's in features.
        swap: whether the two halves of the rows change places.
        wider: whether it may read more inputs than the layer does.

    Raises ``ValueError`` saying which shape was found and which is expected.
    """
    floats = {name: as_matrix(t) for name, t in kinds.items()}
    expected = (rows[1], width)
    delta, shape = weight_forms(floats, rows, expected)
    may_widen = wider and delta.kron is None and shape is not None and shape[0] == rows[1]
    if shape != expected and not (may_widen and shape is not None and shape[1] > width):
        raise ValueError(f"is made for a layer of {shape}, this one is {expected} (out, in)")
    bias, magnitude = bias_of(floats, rows[1]), magnitude_of(floats, expected)
    delta = replace(delta, bias=bias, magnitude=magnitude)
    return swap_halves(delta) if swap else delta


def weight_forms(
    floats: Mapping[str, Tensor], rows: tuple[int, int], expected: tuple[int, int]
) -> tuple[Delta, tuple[int, ...] | None]:
    """What is added to the weight (out, in), and the shape that it is for.

    The shape is None where the factors do not fit each other. Raises ``ValueError`` for tensors
    that FLUX.1 has no layer for, or of which one is missing.
    """
    if "up" in floats or "down" in floats:
        down, up = required(floats, "down", "up")
        up = up * (alpha_of(floats, len(down)) / len(down))
        fits = up.shape[1] == down.shape[0]
        return Delta(rows, down, up), (up.shape[0], down.shape[1]) if fits else None
    if "hada_w1_a" in floats:
        if "hada_t1" in floats:
            raise ValueError("is a LoHa of a convolution, which FLUX.1 has none of")
        down, up = loha(floats)
        return Delta(rows, down, up), (up.shape[0], down.shape[1])
    if any(name.startswith("lokr_") for name in floats):
        kron = lokr(floats)
        shape = tuple(a * b for a, b in zip(kron[0].shape, kron[1].shape, strict=True))
        return Delta(rows, kron=kron), shape
    if "diff" in floats:
        return Delta(rows, diff=floats["diff"]), tuple(floats["diff"].shape)
    if "bias" in floats:
        return Delta(rows), expected
    raise ValueError(f"holds {', '.join(floats)} alone")


def bias_of(floats: Mapping[str, Tensor], count: int) -> Tensor | None:
    """What is added to the bias, (rows,)."""
    bias = floats.get("bias")
    if bias is not None and bias.numel() != count:
        raise ValueError(f"has a bias of {bias.numel()}, expected {count}")
    return None if bias is None else bias.view(-1)


def magnitude_of(floats: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor | None:
    """DoRA's magnitude for a weight of that shape: (rows, 1), or (1, in) where it is by columns."""
    magnitude = floats.get("magnitude")
    if magnitude is None:
        return None
    columns = magnitude.ndim > 1 and magnitude.shape[0] == 1
    count = shape[1] if columns else shape[0]
    if magnitude.numel() != count:
        raise ValueError(f"has {magnitude.numel()} magnitudes, expected {count}")
    return magnitude.reshape((1, -1) if columns else (-1, 1))


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor in float32; a 1x1 convolution (out, in, 1, 1) as its matrix (out, in)."""
    tensor = tensor.float()
    if tensor.ndim == 4:
        if tensor.shape[2:] != (1, 1):
            raise ValueError("is a LoRA of a convolution, which FLUX.1 has none of")
        tensor = tensor[..., 0, 0]
    return tensor


def required(floats: Mapping[str, Tensor], *names: str) -> list[Tensor]:
    """The tensors of those names, of any shape; raises ``ValueError`` naming those that lack."""
    missing = [name for name in names if name not in floats]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    return [floats[name] for name in names]


def alpha_of(floats: Mapping[str, Tensor], rank: int) -> float:
    """Alpha, which is the rank where a file has none."""
    return float(floats["alpha"]) if "alpha" in floats else float(rank)


def loha(floats: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(w1a w1b) * (w2a w2b) as down (r1 * r2, in) and up (out, r1 * r2)."""
    w1a, w1b, w2a, w2b = required(floats, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    up = torch.einsum("or,os->ors", w1a, w2a).flatten(1)
    down = torch.einsum("ri,si->rsi", w1b, w2b).flatten(0, 1)
    return down, up * (alpha_of(floats, len(w1b)) / len(w1b))


def lokr(floats: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The factors (a, b) and (c, d) of a Kronecker product, the scale in the first."""
    if "lokr_t2" in floats:
        raise ValueError("is a LoKr of a convolution, which FLUX.1 has none of")
    ranks, factors = [], []
    for n in (1, 2):
        if f"lokr_w{n}" in floats:
            factors.append(floats[f"lokr_w{n}"])
        else:
            a, b = required(floats, f"lokr_w{n}_a", f"lokr_w{n}_b")
            ranks.append(len(b))
            factors.append(a @ b)
    # whole factors have no rank, and are not scaled
    scale = alpha_of(floats, ranks[-1]) / ranks[-1] if ranks else 1.0
    return factors[0] * scale, factors[1]


def swap_halves(delta: Delta) -> Delta:
    """The rows' halves in each other's place."""

    def turn(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat(x.chunk(2)[::-1])

    if delta.kron is not None:
        return Delta(delta.rows, diff=turn(delta.weight()), bias=turn(delta.bias))
    magnitude = delta.magnitude
    if magnitude is not None and magnitude.shape[0] > 1:
        magnitude = turn(magnitude)
    return Delta(
        delta.rows, delta.down, turn(delta.up), None, turn(delta.diff), turn(delta.bias), magnitude
    )
