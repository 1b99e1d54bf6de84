"""How fused passes round what they write."""

from __future__ import annotations

import torch
from torch import Tensor

#: Not at all, to e4m3 codes, to int8 codes.
PLAIN, FLOAT8, INT8 = 0, 1, 2
CODES = {FLOAT8: torch.float8_e4m3fn, INT8: torch.int8}


def empty_rows(x: Tensor, rows: int, width: int, rounding: int) -> tuple[Tensor, Tensor]:
    """Room beside x, of any shape, for (rows, width) and, where rounded, scales (rows, 1)."""
    out = x.new_empty(rows, width, dtype=CODES.get(rounding, x.dtype))
    return out, x.new_empty(rows if rounding else 0, 1, dtype=torch.float32)
