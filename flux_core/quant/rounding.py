"""How fused passes round what they write."""

from __future__ import annotations

import torch

#: Not at all, to e4m3 codes, to int8 codes.
PLAIN, FLOAT8, INT8 = 0, 1, 2
CODES = {FLOAT8: torch.float8_e4m3fn, INT8: torch.int8}
