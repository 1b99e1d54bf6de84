"""Quantizing the layers of a whole module, and asking them how they work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..record import mark_precision
from .gptq import second_moments_error
from .linear import COMPUTES, QuantizedLinear
from .precision import Precision, as_plan, precision_name
from .registry import FORMATS, full_dtype

M = TypeVar("M", bound=nn.Module)


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, as they are stored."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)


def linears(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Linear]]:
    """Every Linear that may be quantized: its full name, its parent, its name there, itself.

    Those inside of the top-level modules that ``module.high_precision`` names may not.
    """
    kept = getattr(module, "high_precision", ())
    for path, parent in module.named_modules():
        for name, child in parent.named_children():
            full = f"{path}.{name}".lstrip(".")
            if isinstance(child, nn.Linear) and full.split(".")[0] not in kept:
                yield full, parent, name, child


def quantized_linears(module: nn.Module) -> Iterator[QuantizedLinear]:
    return (m for m in module.modules() if isinstance(m, QuantizedLinear))


def quantized_names(module: nn.Module) -> set[str]:
    """Names of the formats that a module already holds."""
    return {layer.format.name for layer in quantized_linears(module)}


@torch.inference_mode(False)  # the weights may later serve a training
def quantize(
    module: M,
    precision: Precision,
    second_moments: Mapping[str, Tensor] = {},
    worker: torch.device | str = "cpu",
) -> M:
    """Change how a transformer, ControlNet or T5 stores its linear layers, in place.

    ``bf16``, ``fp16`` and ``fp32`` cast the whole module. A quantized precision replaces its
    linear layers but those of embedders and the last one, and casts nothing else; embeddings keep
    their dtype. A ``PrecisionPlan`` gives single layers another precision; those of two bytes stay
    as they are. Quantizing again to the same precision changes nothing.

    Codes are the nearest, or for layers whose inputs' ``second_moments`` are known
    (``record_second_moments``) those that lose least for such inputs, searched on the device
    ``worker``.

    Returns the module. Raises ``ValueError`` for an unknown precision, a plan's layer that does not
    exist, a weight that is not finite or moments that do not serve its layer (which is named,
    nothing is changed), and a module that is quantized otherwise.
    """
    plan = as_plan(precision)
    present = quantized_names(module)
    if present == {plan.precision} and not plan.layers:
        return module
    if present:
        raise ValueError(
            f"module is already quantized to {', '.join(sorted(present))}; "
            f"load it again to have it in {plan.precision}"
        )
    layers = list(linears(module))
    unknown = sorted(set(plan.layers) - {full for full, *_ in layers})
    if unknown:
        raise ValueError(f"the precision plan names {unknown[0]!r}, which the module does not have")
    if plan.precision not in FORMATS:
        module.to(full_dtype(plan.precision))
    layers = [item for item in layers if plan.of(item[0]) in FORMATS]
    for full, _, _, linear in layers:
        if linear.weight.device.type != "meta" and not bool(linear.weight.isfinite().all()):
            raise ValueError(f"{full}.weight holds NaN or infinity: nothing was quantized")
        if full in second_moments and (
            reason := second_moments_error(second_moments[full], linear.in_features)
        ):
            raise ValueError(f"{full}: {reason}: nothing was quantized")
    for full, parent, name, linear in layers:
        format = FORMATS[plan.of(full)]
        of_layer = second_moments[full].to(worker) if full in second_moments else None
        quantized = QuantizedLinear.from_linear(linear, format, of_layer)
        quantized.train(linear.training)
        setattr(parent, name, quantized)
    mark_precision(module, precision_name(precision))
    return module


def set_compute(module: M, compute: str) -> M:
    """Choose how a module's quantized layers multiply: ``auto``, ``dequantize`` or ``native``.

    Returns the module. Raises ``ValueError`` for another name.
    """
    if compute not in COMPUTES:
        raise ValueError(f"compute is {compute!r}, expected one of {', '.join(COMPUTES)}")
    for layer in quantized_linears(module):
        layer.set_compute(compute)
    return module


def kernels_used(module: nn.Module) -> Counter[str]:
    """How many layers multiplied in which way so far, with the reasons of fallbacks."""
    return Counter(
        f"{layer.format.name}, {choice}"
        for layer in quantized_linears(module)
        for choice in layer.kernel_choices.values()
    )
