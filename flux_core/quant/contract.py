"""What a storage format must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Format(ABC):
    """How a weight (out, in) is stored: as codes and, for some formats, a scale a row."""

    name: str
    storage: torch.dtype
    scaled: bool

    @abstractmethod
    def quantize(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes (out, in) and scales (out, 1) float32 or None; finite for every finite weight."""

    @abstractmethod
    def dequantize(self, codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The weight (out, in) that the codes stand for, in ``dtype``."""
