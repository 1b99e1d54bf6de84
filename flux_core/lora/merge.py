"""LoRAs added into the weights themselves, for those who want one file."""

from __future__ import annotations

import torch
from torch import nn

from ..quant import QuantizedLinear, quantized_linears
from .apply import LoraStack
from .branch import held_weight, stretch
from .match import linears_of, match_lora, refuse_unmatched


def merge_loras(module: nn.Module, stack: LoraStack) -> nn.Module:
    """Add LoRAs to a model's weights in place, in float32, rounded once to the weights' dtype.

    Returns the module. Raises ``ValueError`` where the module is quantized (its bits would have to
    be made anew: load it in bf16), or where nothing of a LoRA fits it.
    """
    if next(quantized_linears(module), None) is not None:
        raise ValueError("a quantized model's weights are not added to: load it in bf16 to merge")
    layers = linears_of(module)
    found = [(match_lora(lora, module), strength) for lora, strength in stack]
    for matched, _ in found:
        refuse_unmatched(matched.lora, [matched])
    names = dict.fromkeys(name for matched, _ in found for name in matched.deltas)
    with torch.no_grad():
        for name in names:
            layer = layers[name]
            assert isinstance(layer, nn.Linear) and not isinstance(layer, QuantizedLinear)
            own = held_weight(layer)
            weight = own.clone()
            for matched, strength in found:
                for delta in matched.deltas.get(name, []):
                    start, count = delta.rows
                    rows = slice(start, start + count)
                    added = delta.weight()
                    added = torch.zeros_like(own[rows]) if added is None else added
                    if delta.magnitude is not None:
                        added = stretch(layer, delta) * (own[rows] + added) - own[rows]
                    weight[rows] += strength * added
                    if delta.bias is not None:
                        if layer.bias is None:
                            raise ValueError(f"{matched.lora.path}: {name} has no bias to add to")
                        layer.bias[rows] += (strength * delta.bias).to(layer.bias.dtype)
            layer.weight.copy_(weight)
    return module
