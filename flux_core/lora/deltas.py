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

from .names import NOT_READ

#: The axis of a weight (out, in) that a factor has, where its rank may go unsaid.
FLAT_AXES = {
    "up": 0,
    "down": 1,
    "hada_w1_a": 0,
    "hada_w1_b": 1,
    "hada_w2_a": 0,
    "hada_w2_b": 1,
}


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
    refuse_not_read(kinds)
    expected = (rows[1], width)
    floats = {name: as_matrix(name, t, expected) for name, t in kinds.items()}
    delta, shape = weight_forms(floats, rows, expected)
    may_widen = wider and delta.kron is None and shape[0] == rows[1]
    if shape != expected and not (may_widen and shape[1] > width):
        raise ValueError(f"is made for a layer of {shape}, this one is {expected} (out, in)")
    bias, magnitude = bias_of(floats, rows[1]), magnitude_of(floats, expected)
    delta = replace(delta, bias=bias, magnitude=magnitude)
    return swap_halves(delta) if swap else delta


def weight_forms(
    floats: Mapping[str, Tensor], rows: tuple[int, int], expected: tuple[int, int]
) -> tuple[Delta, tuple[int, ...]]:
    """What is added to the weight (out, in), and the shape that it is for.

    Raises ``ValueError`` for tensors that do not fit each other, that FLUX.1 has no layer for, or
    of which one is missing.
    """
    if "up" in floats or "down" in floats:
        down, up = required(floats, "down", "up")
        if up.shape[1] != down.shape[0]:
            raise ValueError(f"has factors of rank {down.shape[0]} and {up.shape[1]}")
        if not len(down):  # of rank 0: nothing is added
            return Delta(rows), (up.shape[0], down.shape[1])
        up = up * (alpha_of(floats, len(down)) / len(down))
        return Delta(rows, down, up), (up.shape[0], down.shape[1])
    if any(name.startswith("hada_") for name in floats):
        if "hada_t1" in floats or "hada_t2" in floats:
            raise ValueError("is a LoHa of a convolution, which FLUX.1 has none of")
        return loha(floats, rows)
    if any(name.startswith("lokr_") for name in floats):
        kron = lokr(floats)
        shape = tuple(a * b for a, b in zip(kron[0].shape, kron[1].shape, strict=True))
        return Delta(rows, kron=kron), shape
    if "diff" in floats:
        return Delta(rows, diff=floats["diff"]), tuple(floats["diff"].shape)
    if {"bias", "up_bias", "magnitude"} & floats.keys():
        return Delta(rows), expected
    raise ValueError(f"holds {', '.join(floats)} alone")


def bias_of(floats: Mapping[str, Tensor], count: int) -> Tensor | None:
    """What is added to the bias, (rows,): a difference, and ``up``'s own, scaled as ``up`` is."""
    biases = [floats[name].view(-1) for name in ("bias", "up_bias") if name in floats]
    for bias in biases:
        if bias.numel() != count:
            raise ValueError(f"has a bias of {bias.numel()}, expected {count}")
    if "up_bias" in floats and len(floats.get("down", ())):
        biases[-1] = biases[-1] * (alpha_of(floats, len(floats["down"])) / len(floats["down"]))
    return sum(biases[1:], biases[0]) if biases else None


def magnitude_of(floats: Mapping[str, Tensor], shape: tuple[int, int]) -> Tensor | None:
    """DoRA's magnitude for a weight of that shape: (rows, 1), or (1, in) where it is by columns.

    A flat one, and one that lies down where it can only stand, is of the axis that it fits.
    """
    magnitude = floats.get("magnitude")
    if magnitude is None:
        return None
    count, (rows, columns) = magnitude.numel(), shape
    lies = magnitude.ndim > 1 and magnitude.shape[0] == 1
    by_columns = count == columns and (lies or count != rows)
    if not by_columns and count != rows:
        raise ValueError(f"has {count} magnitudes, expected {rows} or {columns}")
    return magnitude.reshape((1, -1) if by_columns else (-1, 1))


def refuse_not_read(kinds: Mapping[str, Tensor]) -> None:
    """Raise ``ValueError`` for a layer of which a tensor is of no kind that is computed here:
    without it the rest would mean something else."""
    for name, tensor in kinds.items():
        if name.startswith(NOT_READ):
            raise ValueError(f"has {name.removeprefix(NOT_READ)}, which is not read")
        if name == "lora_mid":
            raise ValueError("is a LoRA of a convolution, which FLUX.1 has none of")
        if name == "down_bias":
            raise ValueError("has a bias on its inner side, which is not read")
        if name != "shape" and not tensor.is_floating_point() and name != "alpha":
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"has {name} in {dtype}, expected floating point: it is quantized")


def as_matrix(name: str, tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    """A tensor in float32; a 1x1 convolution (out, in, 1, 1) as its matrix (out, in), and flat
    factors of a weight (out, in) of that shape as what they can only be."""
    tensor = tensor.float()
    if tensor.ndim in (3, 4, 5) and name != "magnitude":
        if any(side != 1 for side in tensor.shape[2:]):
            raise ValueError("is a LoRA of a convolution, which FLUX.1 has none of")
        tensor = tensor.flatten(1)
    if tensor.ndim == 1 and name in FLAT_AXES:
        side = shape[FLAT_AXES[name]]
        if tensor.numel() % side:
            raise ValueError(f"has a flat {name} of {tensor.numel()}, expected {side} a rank")
        tensor = tensor.reshape((side, -1) if FLAT_AXES[name] == 0 else (-1, side))
    if (
        name not in ("alpha", "rank", "bias", "up_bias", "magnitude", "value", "shape")
        and tensor.ndim != 2
    ):
        raise ValueError(f"has {name} of shape {tuple(tensor.shape)}, expected a matrix")
    return tensor


def required(floats: Mapping[str, Tensor], *names: str) -> list[Tensor]:
    """The tensors of those names, of any shape; raises ``ValueError`` naming those that lack."""
    missing = [name for name in names if name not in floats]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    return [floats[name] for name in names]


def alpha_of(floats: Mapping[str, Tensor], rank: float) -> float:
    """Alpha, which is the rank where a file has none."""
    if "alpha" not in floats:
        return float(rank)
    if floats["alpha"].numel() != 1:
        raise ValueError(f"has {floats['alpha'].numel()} alphas, expected one")
    return float(floats["alpha"])


def loha(floats: Mapping[str, Tensor], rows: tuple[int, int]) -> tuple[Delta, tuple[int, int]]:
    """(w1a w1b) * (w2a w2b) as down (r1 * r2, in) and up (out, r1 * r2), or as the matrix that
    they make where that is smaller."""
    w1a, w1b, w2a, w2b = required(floats, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    if w1a.shape[1] != len(w1b) or w2a.shape[1] != len(w2b):
        raise ValueError("has factors whose ranks do not fit each other")
    shape = (len(w1a), w1b.shape[1])
    if shape != (len(w2a), w2b.shape[1]):
        raise ValueError(f"has products of {shape} and {(len(w2a), w2b.shape[1])}")
    rank = len(w1b) * len(w2b)
    if not rank:
        return Delta(rows), shape
    scale = alpha_of(floats, len(w1b)) / len(w1b)
    if rank * sum(shape) >= shape[0] * shape[1]:
        return Delta(rows, diff=(w1a @ w1b) * (w2a @ w2b) * scale), shape
    up = torch.einsum("or,os->ors", w1a, w2a).flatten(1)
    down = torch.einsum("ri,si->rsi", w1b, w2b).flatten(0, 1)
    return Delta(rows, down, up * scale), shape


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
            if a.shape[1] != len(b):
                raise ValueError(f"has factors of rank {len(b)} and {a.shape[1]}")
            ranks.append(len(b))
            factors.append(a @ b)
    # whole factors have no rank of their own: they are scaled where PEFT's configuration says one
    rank = float(floats["rank"]) if "rank" in floats else ranks[-1] if ranks else 0
    scale = alpha_of(floats, rank) / rank if rank else 1.0
    return factors[0] * scale, factors[1]


def swap_halves(delta: Delta) -> Delta:
    """The rows' halves in each other's place."""

    def turn(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat(x.chunk(2)[::-1])

    if delta.kron is not None:
        delta = replace(delta, kron=None, diff=delta.weight())
    magnitude = delta.magnitude
    if magnitude is not None and magnitude.shape[0] > 1:
        magnitude = turn(magnitude)
    return replace(
        delta,
        up=turn(delta.up),
        diff=turn(delta.diff),
        bias=turn(delta.bias),
        magnitude=magnitude,
    )
