"""Models quantized for what their layers read: in place, or as a copy beside the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..offload.pack import named_tensors, twin
from ..offload.replicas import offload_module
from ..quant import FORMATS, Precision, quantize
from ..quant.apply import linears
from ..quant.precision import PrecisionPlan, as_plan
from .second_moments import record_second_moments

M = TypeVar("M", bound=nn.Module)


def calibrate(
    module: M,
    precision: Precision,
    run: Callable[[], object],
    worker: torch.device | str = "cpu",
) -> M:
    """Quantize a module in place, its codes chosen for the inputs that ``run`` gives its layers.

    Costs nothing afterwards: the formats are the same, and files that are saved open anywhere.

    Args:
        run: lets the module, which holds 16 bits, compute; a few prompts of a few steps are enough.
        worker: where codes are searched.

    Returns the module. Raises ``ValueError`` as ``quantize`` and ``record_second_moments`` do.
    """
    plan = as_plan(precision)
    second_moments = record_second_moments(module, run)
    offload_module(module)
    with torch.inference_mode(False):
        for tensor in unquantized_tensors(module, plan):
            tensor.data = tensor.data.clone()
    return quantize(module, plan, second_moments, worker)


def calibrated_copy(
    module: M,
    precision: Precision,
    second_moments: Mapping[str, Tensor],
    worker: torch.device | str = "cpu",
) -> M:
    """A model quantized for what its layers read; the module itself stays as it is.

    Args:
        second_moments, worker: as ``quantize`` takes them.

    Raises ``ValueError`` as ``quantize`` does.
    """
    offload_module(module)
    plan = as_plan(precision)
    with torch.inference_mode(False):
        copies = {id(t): t.detach().clone() for t in unquantized_tensors(module, plan)}
    return quantize(twin(module, copies), plan, second_moments, worker)


def unquantized_tensors(module: nn.Module, plan: PrecisionPlan) -> list[Tensor]:
    """The tensors, of any shape, that a plan leaves as they are. They may be views of a whole
    block's pinned memory, which they would keep alive."""
    replaced = {
        id(layer.weight) for name, _, _, layer in linears(module) if plan.of(name) in FORMATS
    }
    return [t for _, _, _, t in named_tensors(module) if id(t) not in replaced]
