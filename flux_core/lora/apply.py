"""LoRAs on a model for the length of a run."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ..models.layers import RMSNorm
from ..quant import QuantizedLinear
from .branch import Branch, Layer, LinearBranch, NormBranch, attach, detach
from .deltas import Delta
from .file import Lora
from .match import linears_of, match_lora

#: LoRAs with their strengths, in any order: what they add adds up.
LoraStack = Sequence[tuple[Lora, float]]


#: What is added to layers, and what norms become, by layer; each with the number of its strength.
Numbered = tuple[dict[str, list[tuple[int, Delta]]], dict[str, list[tuple[int, Tensor]]]]


def numbered_deltas(module: nn.Module, loras: Sequence[Lora]) -> Numbered:
    """What LoRAs add to a model's layers, numbered in their order."""
    deltas: dict[str, list[tuple[int, Delta]]] = {}
    norms: dict[str, list[tuple[int, Tensor]]] = {}
    for number, lora in enumerate(loras):
        matched = match_lora(lora, module)
        for name, of_layer in matched.deltas.items():
            deltas.setdefault(name, []).extend((number, delta) for delta in of_layer)
        for name, value in matched.norms.items():
            norms.setdefault(name, []).append((number, value))
    return deltas, norms


class Branches:
    """The branches of one model for one set of deltas, whatever their strengths.

    ``sources`` are what they were made of; they are made anew where another is among them.
    """

    def __init__(self, module: nn.Module, sources: Sequence[object], numbered: Numbered) -> None:
        self.sources = tuple(sources)
        layers = linears_of(module)
        deltas, norms = numbered
        self.branches: dict[str, Branch] = {}
        with torch.inference_mode(False), torch.no_grad():
            for name, of_layer in deltas.items():
                layer = layers[name]
                self.branches[name] = LinearBranch(layer, of_layer, dtype_of(layer, module))
            for name, values in norms.items():
                norm = cast(RMSNorm, module.get_submodule(name))
                self.branches[name] = NormBranch(norm, values)
        self.strengths: tuple[float, ...] = ()

    def set_strengths(self, strengths: Sequence[float]) -> None:
        """Give the deltas strengths, in their order; only numbers change."""
        if tuple(strengths) == self.strengths:
            return
        with torch.inference_mode(False), torch.no_grad():
            for branch in self.branches.values():
                branch.set_strengths(strengths)
        self.strengths = tuple(strengths)


#: The branches of each model's last set of LoRAs.
_branches: weakref.WeakKeyDictionary[nn.Module, Branches] = weakref.WeakKeyDictionary()


def dtype_of(layer: Layer, module: nn.Module) -> torch.dtype:
    """The dtype of a layer's activations."""
    if not isinstance(layer, QuantizedLinear):
        return layer.weight.dtype
    if layer.bias is not None:
        return layer.bias.dtype
    floats = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(floats, torch.bfloat16)


def branches_for(
    module: nn.Module, sources: Sequence[object], numbered: Callable[[], Numbered]
) -> Branches:
    """The branches of a model for what they are made of; those of the last run where that was the
    same, else made of what ``numbered`` gives."""
    branches = _branches.get(module)
    if branches is None or list(map(id, branches.sources)) != list(map(id, sources)):
        branches = _branches[module] = Branches(module, sources, numbered())
    return branches


def current_strengths(module: nn.Module) -> tuple[float, ...]:
    """Strengths of what stands beside a model's layers now, as they were set last."""
    branches = _branches.get(module)
    return () if branches is None else branches.strengths


@contextmanager
def lora_applied(module: nn.Module, stack: LoraStack) -> Iterator[int]:
    """LoRAs are beside a model's layers inside the block of this ``with``; gives how many layers.

    The model's own tensors are not touched, and it is as it was afterwards. Branches are made once
    a set of LoRAs; another strength changes numbers alone.
    """
    stack = [(lora, strength) for lora, strength in stack if strength]
    if not stack:
        yield 0
        return
    loras = [lora for lora, _ in stack]
    branches = branches_for(module, loras, lambda: numbered_deltas(module, loras))
    branches.set_strengths([strength for _, strength in stack])
    with attached(module, branches) as count:
        yield count


@contextmanager
def attached(module: nn.Module, branches: Branches) -> Iterator[int]:
    """Branches are beside a model's layers inside the block; gives how many layers."""
    layers = {name: module.get_submodule(name) for name in branches.branches}
    try:
        for name, branch in branches.branches.items():
            attach(layers[name], branch)
        yield len(branches.branches)
    finally:
        for layer in layers.values():
            detach(layer)
