"""Second moments of what a model's layers read (the Hessian of GPTQ), for rounding by them.

    M = mean of x x^T over inputs x,   in blocks of C columns (``quant.gptq``)

A few real prompts give them, while the model still holds 16 bits:

    second_moments = record_second_moments(transformer, draw)
    quantize(transformer, "fp8_scaled", second_moments)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..quant.gptq import second_moments_of
from .observer import observe
from .sensitivity import refuse_quantized


def record_second_moments(module: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """Second moments of what every layer reads while ``run`` runs, for ``quantize``.

    Returns (N, C, C) float32 by layer on the CPU, 1.5 GB for FLUX.1. The module may be streamed.
    Raises ``ValueError`` where it is quantized already: what is to be made good is its 16 bits'.
    """
    refuse_quantized(module)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, x: Tensor) -> None:
        if not x.numel():
            return
        products = second_moments_of(x).cpu()
        sums[name] = products if name not in sums else sums[name].add_(products)
        counts[name] = counts.get(name, 0) + x.shape[:-1].numel()

    with torch.no_grad(), observe(module, add):
        run()
    return {name: total / counts[name] for name, total in sums.items()}


def record_second_moments_of_all(
    modules: Sequence[nn.Module], run: Callable[[], object]
) -> list[dict[str, Tensor]]:
    """``record_second_moments`` of several modules that compute together, in one run."""
    if not modules:
        run()
        return []
    others: list[dict[str, Tensor]] = []

    def run_others() -> None:
        others[:] = record_second_moments_of_all(modules[1:], run)

    return [record_second_moments(modules[0], run_others), *others]
