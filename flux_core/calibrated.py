"""A quantized copy of a model that goes on beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from .offload.pack import named_tensors, twin
from .quant import FORMATS, Precision, quantize, record_moments
from .quant.plan import as_plan
from .quant.walk import linears

M = TypeVar("M", bound=nn.Module)


def calibrated_copy(
    module: M,
    precision: Precision,
    moments: Mapping[str, Tensor],
    worker: torch.device | str = "cpu",
) -> M:
    """A model quantized for what its layers read; the module itself stays as it is.

    Args:
        moments, worker: as ``quantize`` takes them.

    Raises ``ValueError`` as ``quantize`` does.
    """
    plan = as_plan(precision)
    replaced = {
        id(layer.weight) for name, _, _, layer in linears(module) if plan.of(name) in FORMATS
    }
    with torch.inference_mode(False):
        # a view of the module's memory would keep all of that alive
        copies = {
            id(t): t.detach().clone()
            for _, _, _, t in named_tensors(module, set())
            if id(t) not in replaced
        }
    return cast(M, quantize(twin(module, copies), plan, moments, worker))


def moments_of_all(
    modules: Sequence[nn.Module], run: Callable[[], object]
) -> list[dict[str, Tensor]]:
    """``record_moments`` of several modules that compute together, in one run."""
    if not modules:
        run()
        return []
    others: list[dict[str, Tensor]] = []

    def rest() -> None:
        others[:] = moments_of_all(modules[1:], run)

    return [record_moments(modules[0], rest), *others]
