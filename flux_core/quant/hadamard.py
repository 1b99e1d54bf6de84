"""The block Hadamard transform that spreads outliers before int8 rounding.

    x (..., in) -> x H,   H = blocks of H4 (x) H4 (x) ... / sqrt(size),   H H = 1

It is ConvRot's regular Hadamard matrix (arXiv:2512.03673), symmetric and its own inverse, the one
that the host's int8 files are rotated with. Since (x H)(w H)^T = x w^T, rotated weights meet
rotated inputs and nothing is turned back.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from .products import matmul

#: The host's block; smaller powers of four serve widths that it does not divide.
BLOCK = 256
_CORE = ((1, 1, 1, -1), (1, 1, -1, 1), (1, -1, 1, 1), (-1, 1, 1, 1))
Matrices = dict[tuple[int, torch.device, torch.dtype], Tensor]
_matrices: Matrices = {}


class _Counted(threading.local):
    """Those on meta: each thread that counts bytes has its own, and forgets them before it does."""

    def __init__(self) -> None:
        self.matrices: Matrices = {}


_counted = _Counted()


def block_of(width: int, largest: int = BLOCK) -> int:
    """The largest power of four up to ``largest`` that divides a width; 1 rotates nothing."""
    block = 1
    while block * 4 <= largest and width % (block * 4) == 0:
        block *= 4
    return block


def hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The orthogonal matrix (size, size); size is a power of four."""
    key, matrices = (size, device, dtype), matrices_on(device.type)
    known = matrices.get(key)
    if known is None:
        with torch.inference_mode(False):  # it may later serve a training
            core = torch.tensor(_CORE, dtype=torch.float32) / 2
            matrix = torch.ones(1, 1)
            while matrix.shape[0] < size:
                matrix = torch.kron(matrix, core)
            known = matrices.setdefault(key, matrix.to(device, dtype))
    return known


def matrices_on(kind: str) -> Matrices:
    """The matrices that are kept on one kind of device."""
    return _counted.matrices if kind == "meta" else _matrices


def forget_matrices(kind: str) -> None:
    """Let the next product on one kind of device make its matrix anew: whoever counts bytes sees
    it, as on a card that has none yet."""
    matrices = matrices_on(kind)
    for key in [key for key in list(matrices) if key[1].type == kind]:
        matrices.pop(key, None)


def rotate(x: Tensor, block: int) -> Tensor:
    """Rotate the last axis of x (..., in) in blocks; twice gives x back.

    One product with the whole matrix: its two factors of 16 would be an eighth of the work, but
    small products cost more than they save.
    """
    if block == 1:
        return x
    return matmul(x.reshape(-1, block), hadamard(block, x.device, x.dtype)).view(x.shape)
