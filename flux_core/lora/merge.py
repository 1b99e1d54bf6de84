"""LoRAs added into the weights themselves, for those who want one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..models.layers import RMSNorm
from ..models.transformer import FluxTransformer
from ..quant import QuantizedLinear, quantized_linears
from ..quant.products import Linear
from .block_weights import BlockCounts
from .branch import dora_gain, float_weight
from .match import WIDENED_LAYER, LoraMatch, linears_of, match_lora, part_of, refuse_unmatched
from .use import LoraStack, LoraUse, lora_uses


def merge_loras(module: nn.Module, stack: LoraStack) -> nn.Module:
    """Add LoRAs to a model's weights in place, in float32, rounded once to the weights' dtype.

    A control LoRA's wider input makes the model one with a wider input. Weights a block count.

    Returns the module. Raises ``ValueError`` where the module is quantized (its bits would have to
    be made anew: load it in bf16), where nothing of a LoRA fits it, where one has a schedule or a
    region, or where a sum is not finite; the module is then as it was.
    """
    if next(quantized_linears(module), None) is not None:
        raise ValueError("a quantized model's weights are not added to: load it in bf16 to merge")
    layers = linears_of(module)
    part, counts = part_of(module), BlockCounts.of(module)
    matches = [(match_lora(use.lora, module), use) for use in lora_uses(stack)]
    for match, use in matches:
        refuse_unmatched(match.lora, [match])
        if use.by_row:
            what = "a schedule" if use.region is None else "a region"
            raise ValueError(
                f"{use.lora.path} has {what}, and merged weights are the same at every step and "
                "place: merge it without, or leave it beside the weights"
            )
        if part == "transformer":
            use.check(module)

    def of_layer(name: str) -> list[tuple[LoraMatch, float]]:
        return [(match, use.in_layer(name, part, counts)) for match, use in matches]

    with torch.no_grad():
        fitting = {}
        for name in dict.fromkeys(name for match, _ in matches for name in match.deltas):
            layer = layers[name]
            assert isinstance(layer, nn.Linear) and not isinstance(layer, QuantizedLinear)
            width = max(delta.width for match, _ in matches for delta in match.deltas.get(name, ()))
            fitting[name] = layer if width <= layer.in_features else with_width(layer, width)
        # computed once to be checked and once to be written: to keep all of it meanwhile would
        # take the model's memory again
        for name, layer in fitting.items():
            merged_layer(layer, name, of_layer(name))
        norms = merged_norms(module, matches)
        for name, layer in fitting.items():
            weight, bias = merged_layer(layer, name, of_layer(name))
            layer.weight.copy_(weight)
            if bias is not None:
                layer.bias.copy_(bias)
            if layer is not layers[name]:
                replace_input(module, name, layer)
        for name, values in norms.items():
            cast(RMSNorm, module.get_submodule(name)).scale.copy_(values)
    return module


def merged_norms(
    module: nn.Module, matches: Sequence[tuple[LoraMatch, LoraUse]]
) -> dict[str, Tensor]:
    """The scales of norms (D,) with what LoRAs make of them, by name."""
    part, counts = part_of(module), BlockCounts.of(module)
    norms: dict[str, Tensor] = {}
    for match, use in matches:
        for name, value in match.norms.items():
            scale = cast(RMSNorm, module.get_submodule(name)).scale
            strength = use.in_layer(name, part, counts)
            old = norms.get(name, scale.float())
            norms[name] = torch.lerp(old, value.to(scale.device), strength)
            if not norms[name].to(scale.dtype).isfinite().all():
                raise ValueError(f"{match.lora.path}: makes {name} infinite, or NaN")
    return norms


def merged_layer(
    layer: nn.Linear, name: str, matches: Sequence[tuple[LoraMatch, float]]
) -> tuple[Tensor, Tensor | None]:
    """One layer's weight (out, in) and bias (out,) with all deltas added, float32."""
    own = float_weight(layer)
    weight = own.clone()
    bias = None if layer.bias is None else layer.bias.float().clone()
    for match, strength in matches:
        for delta in match.deltas.get(name, []):
            start, count = delta.rows
            rows = slice(start, start + count)
            added = delta.weight()
            added = torch.zeros_like(own[rows]) if added is None else added
            added = F.pad(added, (0, own.shape[1] - added.shape[1]))
            if delta.magnitude is not None:
                added = dora_gain(layer, delta) * (own[rows] + added) - own[rows]
            weight[rows] += strength * added
            if delta.bias is not None:
                if bias is None:
                    raise ValueError(f"{match.lora.path}: {name} has no bias to add to")
                bias[rows] += strength * delta.bias
    for tensor, values in ((layer.weight, weight), (layer.bias, bias)):
        if values is not None and not values.to(tensor.dtype).isfinite().all():
            paths = ", ".join(match.lora.path for match, _ in matches if name in match.deltas)
            raise ValueError(f"{paths}: makes {name} infinite, or NaN")
    return weight, bias


def with_width(layer: nn.Linear, width: int) -> nn.Linear:
    """A layer with more inputs, which count for nothing yet."""
    about = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    wide = Linear(width, layer.out_features, bias=layer.bias is not None, **about)
    wide.weight.zero_()
    wide.weight[:, : layer.in_features] = layer.weight
    if layer.bias is not None:
        wide.bias.copy_(layer.bias)
    wide.requires_grad_(layer.weight.requires_grad)
    return wide


def replace_input(module: nn.Module, name: str, layer: nn.Linear) -> None:
    """Put a wider layer in the place of the one that reads tokens."""
    assert isinstance(module, FluxTransformer) and name == WIDENED_LAYER
    assert isinstance(layer, Linear)
    module.img_in = layer
    module.config = replace(module.config, in_channels=layer.in_features)
