"""Which layers lose most by a format: measured on what really goes through them.

    error(layer, format) = |x W^T - x W'^T| / |x W^T|,   x = a sample of the layer's inputs

A plan then gives 16 bits to the layers where that lowers the sum of squared errors most for a byte,
as long as the budget lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..quant.apply import linears, quantized_names
from ..quant.precision import PrecisionPlan
from ..quant.registry import FORMATS
from .observer import observe

#: Bits of a weight in a layer that a plan keeps from being quantized.
FULL_BITS = 16
#: Tokens kept of every call of a layer, and in all.
TOKENS_A_CALL, TOKENS = 32, 256


@dataclass(frozen=True)
class LayerErrors:
    """One layer: its weights' number and its relative output error by format."""

    weights: int
    errors: Mapping[str, float]


def record_inputs(module: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """Inputs (tokens, in) of every layer that may be quantized, sampled while ``run`` runs."""
    kept: dict[str, list[Tensor]] = {}

    def keep(name: str, x: Tensor) -> None:
        samples = kept.setdefault(name, [])
        if sum(map(len, samples)) < TOKENS:
            tokens = x.reshape(-1, x.shape[-1])
            samples.append(tokens[:: max(1, len(tokens) // TOKENS_A_CALL)].clone())

    with observe(module, keep):
        run()
    return {name: torch.cat(samples)[:TOKENS] for name, samples in kept.items()}


def layer_errors(
    module: nn.Module, inputs: Mapping[str, Tensor], formats: Iterable[str] = tuple(FORMATS)
) -> dict[str, LayerErrors]:
    """The relative output error of each layer in each format, for its ``inputs`` (tokens, in)."""
    measured = {}
    for name, _, _, layer in linears(module):
        if name not in inputs:
            continue
        x = inputs[name].float()
        weight = layer.weight.detach().to(x.device).float()  # it may be streamed, and not be there
        exact = F.linear(x, weight)
        size = exact.norm().clamp_min(1e-30)
        errors = {}
        for key in formats:
            format = FORMATS[key]
            back = format.dequantize(format.quantize(weight), torch.float32)
            errors[key] = float((F.linear(x, back) - exact).norm() / size)
        measured[name] = LayerErrors(weight.numel(), errors)
    return measured


def choose_plan(measured: Mapping[str, LayerErrors], precision: str, bits: float) -> PrecisionPlan:
    """Keep 16 bits where they help most, within ``bits`` a weight on average.

    Raises ``ValueError`` for fewer bits than the precision itself takes, and more than 16.
    """
    least = FORMATS[precision].weight_bits
    if not least <= bits <= FULL_BITS:
        raise ValueError(
            f"the budget is {bits} bits a weight, {precision} takes {least:g} to {FULL_BITS}"
        )
    total = sum(layer.weights for layer in measured.values())
    left = total * (bits - least) / (FULL_BITS - least)  # weights that 16 bits can be paid for

    def worth(name: str) -> float:
        return measured[name].errors[precision] ** 2 / measured[name].weights

    kept = {}
    for name in sorted(measured, key=worth, reverse=True):
        if measured[name].weights <= left:
            left -= measured[name].weights
            kept[name] = "bf16"
    return PrecisionPlan(precision, dict(sorted(kept.items())))


def measure_sensitivity(module: nn.Module, run: Callable[[], object]) -> dict[str, LayerErrors]:
    """Errors of every layer on the inputs that ``run`` gives it.

    The module must hold 16 bits or more: raises ``ValueError`` where it is quantized already.
    """
    refuse_quantized(module)
    with torch.no_grad():
        return layer_errors(module, record_inputs(module, run))


def refuse_quantized(module: nn.Module) -> None:
    """Raise ``ValueError`` where a module holds less than 16 bits."""
    held = quantized_names(module)
    if held:
        raise ValueError(
            f"module is quantized to {', '.join(sorted(held))}; what that loses is measured on the "
            "weights in bf16: load it so"
        )
