"""What a model's layers read, as rounding wants to know it (``quant.gptq``).

A few real prompts say it, while the model still holds 16 bits:

    moments = record_moments(transformer, draw)
    quantize(transformer, "fp8_scaled", moments)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..quant.gptq import second_moments_of
from .observer import observing
from .sensitivity import refuse_quantized


def record_second_moments(module: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """Second moments of what every layer reads while ``run`` runs, for ``quantize``.

    Returns (N, C, C) float32 by layer on the CPU, 1.5 GB for FLUX.1. The module may be streamed.
    Raises ``ValueError`` where it is quantized already: what is to be made good is its 16 bits'.
    """
    refuse_quantized(module)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def heard(name: str, x: Tensor) -> None:
        if not x.numel():
            return
        found = second_moments_of(x).cpu()
        sums[name] = found if name not in sums else sums[name].add_(found)
        counts[name] = counts.get(name, 0) + x.shape[:-1].numel()

    with torch.no_grad(), observing(module, heard):
        run()
    return {name: found / counts[name] for name, found in sums.items()}
