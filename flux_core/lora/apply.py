"""LoRAs on a model for the length of a run."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ..models.layers import RMSNorm
from ..quant import QuantizedLinear
from .block_weights import BlockCounts, BlockWeights
from .branch import Branch, Layer, LinearBranch, NormBranch, attach, detach
from .deltas import Delta
from .file import Lora
from .match import linears_of, match_lora, part_of
from .rows import RowFactors, RowLinearBranch, RowNormBranch, kind_of_rows
from .use import LoraStack, LoraUse, lora_uses

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
    ``by_row`` are the numbers of those that count differently from row to row.
    """

    def __init__(
        self,
        module: nn.Module,
        sources: Sequence[object],
        numbered: Numbered,
        by_row: Collection[int] = (),
    ) -> None:
        self.sources, self.by_row = tuple(sources), frozenset(by_row)
        self.part, self.counts = part_of(module), BlockCounts.of(module)
        self.row_factors = RowFactors()
        layers = linears_of(module)
        deltas, norms = numbered
        self.branches: dict[str, Branch] = {}
        with torch.inference_mode(False), torch.no_grad():
            for name, of_layer in deltas.items():
                layer = layers[name]
                arguments = layer, of_layer, dtype_of(layer, module)
                self.branches[name] = (
                    RowLinearBranch(*arguments, self.row_factors, kind_of_rows(name))
                    if self.differ(of_layer)
                    else LinearBranch(*arguments)
                )
            for name, values in norms.items():
                norm = cast(RMSNorm, module.get_submodule(name))
                self.branches[name] = (
                    RowNormBranch(norm, values, self.row_factors, kind_of_rows(name))
                    if self.differ(values)
                    else NormBranch(norm, values)
                )
        self.strengths: tuple[float, ...] = ()
        self.blocks: tuple[BlockWeights | None, ...] = ()

    def of_replica(self) -> Branches:
        """The same tensors for a replica of the model, which has factors a row of its own."""
        other = copy.copy(self)
        other.row_factors = RowFactors()
        memo: dict[int, object] = {id(self.row_factors): other.row_factors}
        for branch in self.branches.values():
            memo |= {id(tensor): tensor for tensor in branch.all_tensors()}
        other.branches = copy.deepcopy(self.branches, memo)
        other.sources = (self,)
        return other

    def differ(self, numbered: Sequence[tuple[int, object]]) -> bool:
        """Whether one of some counts differently from row to row."""
        return any(number in self.by_row for number, _ in numbered)

    def set_strengths(
        self, strengths: Sequence[float], blocks: Sequence[BlockWeights | None] = ()
    ) -> None:
        """Give the deltas strengths, in their order, and the first of them weights a block; only
        numbers change."""
        if tuple(strengths) == self.strengths and tuple(blocks) == self.blocks:
            return
        weighted = [(number, weights) for number, weights in enumerate(blocks) if weights]
        with torch.inference_mode(False), torch.no_grad():
            for name, branch in self.branches.items():
                of_layer = list(strengths)
                for number, weights in weighted:
                    of_layer[number] *= weights.weight(name, self.part, self.counts)
                branch.set_strengths(of_layer)
        self.strengths, self.blocks = tuple(strengths), tuple(blocks)


#: The branches of each model's last set of LoRAs.
_branches: weakref.WeakKeyDictionary[nn.Module, Branches] = weakref.WeakKeyDictionary()


#: What is beside a model's layers now.
_attached: weakref.WeakKeyDictionary[nn.Module, Branches] = weakref.WeakKeyDictionary()


def dtype_of(layer: Layer, module: nn.Module) -> torch.dtype:
    """The dtype of a layer's activations."""
    if not isinstance(layer, QuantizedLinear):
        return layer.weight.dtype
    if layer.bias is not None:
        return layer.bias.dtype
    floats = (p.dtype for p in module.parameters() if p.is_floating_point())
    return next(floats, torch.bfloat16)


def branches_for(
    module: nn.Module,
    sources: Sequence[object],
    numbered: Callable[[], Numbered],
    by_row: Collection[int] = (),
) -> Branches:
    """The branches of a model for what they are made of, and those of them that count by row; those
    of the last run where that was the same, else made of what ``numbered`` gives."""
    branches = _branches.get(module)
    same = branches is not None and list(map(id, branches.sources)) == list(map(id, sources))
    if branches is None or not same or branches.by_row != frozenset(by_row):
        branches = _branches[module] = Branches(module, sources, numbered(), by_row)
    return branches


def branches_of_replica(replica: nn.Module, branches: Branches) -> Branches:
    """A replica's branches with the tensors of its model's, which have their strengths."""
    own = _branches.get(replica)
    if own is None or own.sources != (branches,):
        own = _branches[replica] = branches.of_replica()
    own.strengths, own.blocks = branches.strengths, branches.blocks
    return own


def current_strengths(module: nn.Module) -> Hashable:
    """Strengths of what stands beside a model's layers now, as they were set last."""
    branches = _branches.get(module)
    return () if branches is None else (branches.strengths, branches.blocks)


def counting(stack: LoraStack) -> list[LoraUse]:
    """Those LoRAs of a stack that add anything."""
    return [use for use in lora_uses(stack) if use.strength]


@contextmanager
def lora_applied(
    module: nn.Module, stack: LoraStack, replica: nn.Module | None = None
) -> Iterator[int]:
    """LoRAs are beside a model's layers inside the block of this ``with``; gives how many layers.

    With a ``replica`` of the model they are beside that one's, with the tensors of the model's.

    The model's own tensors are not touched, and it is as it was afterwards. Branches are made once
    a set of LoRAs; another strength changes numbers alone. LoRAs with schedules and regions count
    whole until somebody says where and when (``row_factors``); text encoders have neither.
    """
    uses = counting(stack)
    if not uses:
        yield 0
        return
    loras, by_row = [use.lora for use in uses], []
    if part_of(module) == "transformer":
        by_row = [number for number, use in enumerate(uses) if use.by_row]
        for use in uses:
            use.check(module)
    branches = branches_for(module, loras, lambda: numbered_deltas(module, loras), by_row)
    branches.set_strengths([use.strength for use in uses], [use.blocks for use in uses])
    if replica is not None:
        module, branches = replica, branches_of_replica(replica, branches)
    with attached(module, branches) as count:
        yield count


@contextmanager
def attached(module: nn.Module, branches: Branches) -> Iterator[int]:
    """Branches are beside a model's layers inside the block; gives how many layers."""
    layers = {name: module.get_submodule(name) for name in branches.branches}
    try:
        for name, branch in branches.branches.items():
            attach(layers[name], branch)
        _attached[module] = branches
        yield len(branches.branches)
    finally:
        _attached.pop(module, None)
        for layer in layers.values():
            detach(layer)


def attached_factors(module: nn.Module) -> RowFactors | None:
    """Where what is beside a model's layers reads its factors a row; None where nothing does."""
    branches = _attached.get(module)
    return branches.row_factors if branches is not None and branches.by_row else None
