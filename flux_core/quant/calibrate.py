"""Quantizing with knowledge of what a model reads: a few real prompts say it.

moments = record_moments(transformer, draw)      # the model holds 16 bits
quantize(transformer, "fp8_scaled", moments)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .compensate import moments_of
from .listen import listening
from .measure import refuse_quantized
from .plan import Precision
from .walk import quantize


def record_moments(module: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
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
        found = moments_of(x).cpu()
        sums[name] = found if name not in sums else sums[name].add_(found)
        counts[name] = counts.get(name, 0) + x.shape[:-1].numel()

    with torch.no_grad(), listening(module, heard):
        run()
    return {name: found / counts[name] for name, found in sums.items()}


def calibrate(
    module: nn.Module,
    precision: Precision,
    run: Callable[[], object],
    worker: torch.device | str = "cpu",
) -> nn.Module:
    """Quantize a module in place, its codes chosen for the inputs that ``run`` gives its layers.

    Costs nothing afterwards: the formats are the same, and files that are saved open anywhere.

    Args:
        run: lets the module, which holds 16 bits, compute; a few prompts of a few steps are enough.
        worker: where codes are searched.

    Returns the module. Raises ``ValueError`` as ``quantize`` and ``record_moments`` do.
    """
    return quantize(module, precision, record_moments(module, run), worker)
