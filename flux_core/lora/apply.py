"""LoRAs on a model for the length of a run."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..quant import QuantizedLinear
from .branch import Branch, Layer, give, take
from .deltas import Delta
from .file import Lora
from .match import linears_of, match_lora

#: LoRAs with their strengths, in any order: what they add adds up.
LoraStack = Sequence[tuple[Lora, float]]


class Branches:
    """The branches of one model for one set of LoRAs, whatever their strengths."""

    def __init__(self, module: nn.Module, loras: Sequence[Lora]) -> None:
        self.loras = tuple(loras)
        layers = linears_of(module)
        deltas: dict[str, list[tuple[int, Delta]]] = {}
        for number, lora in enumerate(loras):
            for name, found in match_lora(lora, module).deltas.items():
                deltas.setdefault(name, []).extend((number, delta) for delta in found)
        with torch.inference_mode(False), torch.no_grad():
            self.branches = {
                name: Branch(layers[name], found, dtype_of(layers[name], module))
                for name, found in deltas.items()
            }
        self.strengths: tuple[float, ...] = ()

    def set_strengths(self, strengths: Sequence[float]) -> None:
        if tuple(strengths) == self.strengths:
            return
        with torch.inference_mode(False), torch.no_grad():
            for branch in self.branches.values():
                branch.set_strengths(strengths)
        self.strengths = tuple(strengths)


_made: weakref.WeakKeyDictionary[nn.Module, Branches] = weakref.WeakKeyDictionary()


def dtype_of(layer: Layer, module: nn.Module) -> torch.dtype:
    """The dtype of a layer's activations."""
    if not isinstance(layer, QuantizedLinear):
        return layer.weight.dtype
    if layer.bias is not None:
        return layer.bias.dtype
    floats = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(floats, torch.bfloat16)


@contextmanager
def lora_applied(module: nn.Module, stack: LoraStack) -> Iterator[int]:
    """LoRAs are beside a model's layers inside the block of this ``with``; gives how many layers.

    The model's own tensors are not touched, and it is as it was afterwards. Those of a LoRA are put
    together once a set of LoRAs; another strength changes numbers alone.
    """
    stack = [(lora, strength) for lora, strength in stack if strength]
    if not stack:
        yield 0
        return
    loras = [lora for lora, _ in stack]
    known = _made.get(module)
    same = known is not None and len(known.loras) == len(loras) and all(
        a is b for a, b in zip(known.loras, loras, strict=True)
    )  # fmt: skip
    if known is None or not same:
        known = _made[module] = Branches(module, loras)
    known.set_strengths([strength for _, strength in stack])
    layers = linears_of(module)
    try:
        for name, branch in known.branches.items():
            give(layers[name], branch)
        yield len(known.branches)
    finally:
        for name in known.branches:
            take(layers[name])
