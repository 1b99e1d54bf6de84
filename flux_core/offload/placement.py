"""One module's weights: which of them are on the device, and the ring for the rest.

``set_resident`` brings it about, ``running`` lets the module compute, ``shrink`` and ``evict`` give
room. What is on the device stays there from run to run until somebody takes it away.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .blocks import blocks_of, has_attached, modulation_parts, modulations_of, parts_apart
from .gradient_checkpointing import gradient_checkpointed
from .host_weights import HostWeights, WeightsWithBranches
from .memory import has_own_memory
from .pack import copied_to
from .ring import Ring

_placements: weakref.WeakKeyDictionary[nn.Module, Placement] = weakref.WeakKeyDictionary()


class Training(NamedTuple):
    """That a module computes gradients; ``on_host``: what blocks keep for them waits there."""

    on_host: bool = False


class Placement:
    """Where a module's weights are; made once a module, by ``placement_of``.

    ``blocks`` stay or pass through a ring, ``rest`` is all outside of them, and ``modulations`` are
    computed ahead and stay on the host unless all is on the device.
    """

    def __init__(self, module: nn.Module, device: torch.device, separate: bool) -> None:
        self._module = weakref.ref(module)
        self.device, self.separate = device, separate
        self.rest = HostWeights(module, parts_apart(module))
        self.blocks = [HostWeights(b, modulation_parts(b)) for b in blocks_of(module)]
        self.modulations = [HostWeights(layer, set()) for layer in modulations_of(module)]
        #: LoRAs' branches of each block, and of the rest; they are there for a run alone
        self.branches: dict[HostWeights, HostWeights] = {}
        #: what blocks pass through while the module computes
        self.ring: Ring | None = None

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Numbers of what is attached to the blocks may change inside, also in the middle of a run,
        between two calls of the module."""
        with nullcontext() if self.ring is None else self.ring.changing():
            yield

    @property
    def module(self) -> nn.Module:
        module = self._module()
        assert module is not None, "a placement is kept by its module"
        return module

    @property
    def host_weights(self) -> list[HostWeights]:
        return [self.rest, *self.blocks, *self.modulations]

    @property
    def size(self) -> int:
        """Bytes of all weights."""
        return sum(weights.size for weights in self.host_weights)

    @property
    def held(self) -> int:
        """Bytes of weights on the device."""
        host_weights = (*self.host_weights, *self.branches.values())
        return sum(weights.size for weights in host_weights if weights.onloaded is not None)

    @property
    def pinned(self) -> int:
        return sum(weights.size for weights in self.host_weights if weights.flat is not None)

    @property
    def resident(self) -> frozenset[int]:
        """Numbers of the blocks that are on the device."""
        return frozenset(i for i, weights in enumerate(self.blocks) if weights.onloaded is not None)

    def set_resident(self, resident: Collection[int], modulations: bool = False) -> None:
        """Have these blocks on the device, with the rest; other blocks leave it.

        An error on the way (a device that is full, say) leaves a part of them there, and the module
        whole.
        """
        for number, weights in enumerate(self.blocks):
            if number not in resident:
                weights.offload()
        if not modulations:
            for weights in self.modulations:
                weights.offload()
        self.rest.onload(self.device, self.separate)
        for number in sorted(resident):
            self.blocks[number].onload(self.device, self.separate)
        if modulations:
            for weights in self.modulations:
                weights.onload(self.device, self.separate)

    def shrink(self, size: int) -> int:
        """Take blocks off the device until ``size`` bytes are free; returns what was freed."""
        freed = 0
        for weights in (*self.modulations, *reversed(self.blocks), self.rest):
            if freed >= size:
                break
            freed += weights.offload()
        return freed

    def evict(self) -> int:
        """Take everything off the device."""
        return self.shrink(self.size + 1)

    def pin(self, numbers: Collection[int], budget: int, move: bool = True) -> None:
        """Pin blocks on the host for faster copies, as far as the budget goes; ``move`` as
        ``HostWeights.pin`` has it."""
        for number in numbers:
            self.blocks[number].pin(budget, move)
            self.branches_of(self.blocks[number]).pin(budget, move)

    def branches_of(self, weights: HostWeights) -> HostWeights:
        """The branches beside a block, or beside the rest."""
        branches = self.branches.get(weights)
        if branches is None or not branches.unchanged:
            branches = self.branches[weights] = HostWeights(
                weights.module, weights.left_out, branches=True
            )
        return branches

    @contextmanager
    def running(
        self,
        resident: Collection[int],
        slots: int = 2,
        poison: bool = False,
        training: Training | None = None,
    ) -> Iterator[Ring | None]:
        """The module computes inside the block of this ``with``.

        Blocks that are not ``resident`` pass through a ring; with ``training`` forwards and back
        again. Whatever happens, the module is as it was before.
        """
        attached = {weights: self.branches_of(weights) for weights in (self.rest, *self.blocks)}
        forwards: dict[nn.Module, Callable[..., Any]] = {}
        ring: Ring | None = None
        try:
            for weights in (self.rest, *(self.blocks[number] for number in resident)):
                attached[weights].onload(self.device, self.separate)
            moving = [number for number in range(len(self.blocks)) if number not in resident]
            if moving:
                ring = self.ring = self.new_ring(
                    [self.blocks[i] for i in moving], attached, slots, poison, training
                )
                forwards |= self.streamed_forwards(moving, ring, training)
            if training is not None:
                for number in resident:
                    block = self.blocks[number].module
                    here = partial(nullcontext, block)
                    forwards[block] = gradient_checkpointed(block, here, here, training.on_host)
            for weights in self.modulations:
                if weights.onloaded is None or has_attached(weights.module):
                    forwards[weights.module] = live(weights.module, self.device)
            for owner, forward in forwards.items():
                owner.forward = forward
            yield ring
        finally:
            self.ring = None
            for owner in forwards:
                owner.__dict__.pop("forward", None)
            for weights in attached.values():
                weights.offload()
            if ring is not None:
                ring.close()

    def new_ring(
        self,
        blocks: Sequence[HostWeights],
        attached: Mapping[HostWeights, HostWeights],
        slots: int,
        poison: bool,
        training: Training | None,
    ) -> Ring:
        """The ring that blocks pass through, with what is attached to them; for gradients they come
        back in reverse."""
        passing = [WeightsWithBranches(b, attached[b]) if attached[b].size else b for b in blocks]
        turns = passing if training is None else [*passing, *reversed(passing)]
        return Ring(turns, self.device, slots, poison)

    def streamed_forwards(
        self, moving: Sequence[int], ring: Ring, training: Training | None
    ) -> dict[nn.Module, Callable[..., Any]]:
        """What stands in the place of ``forward`` for blocks that pass through a ring."""
        forwards: dict[nn.Module, Callable[..., Any]] = {}
        for turn, number in enumerate(moving):
            block = self.blocks[number].module
            if training is None:
                forwards[block] = through(ring, turn)
                continue
            first = partial(ring.using, turn)
            second = partial(ring.using, 2 * len(moving) - 1 - turn)
            forwards[block] = gradient_checkpointed(block, first, second, training.on_host)
        return forwards


def placement_of(
    module: nn.Module, device: torch.device, separate: bool | None = None
) -> Placement:
    """The placement of a module on a device; a new one where the module was changed.

    ``separate``: whether the device's memory is apart from the host's; None is as it was, or as
    such devices have it.
    """
    placement = _placements.get(module)
    if placement is not None and placement.device == device:
        same = separate is None or separate == placement.separate
        if same and all(weights.unchanged for weights in placement.host_weights):
            return placement
    if placement is not None:
        for weights in placement.host_weights:
            if weights.unchanged:  # else it is the one who changed it who knows what belongs there
                weights.offload()
    if separate is None:
        separate = has_own_memory(device)
    placement = _placements[module] = Placement(module, device, separate)
    return placement


def placement_if_any(module: nn.Module) -> Placement | None:
    """The placement that a module has, of whatever device; None where it was on none."""
    return _placements.get(module)


def forget_placement(module: nn.Module) -> None:
    """Take one module's weights off whatever device they were left on, and keep hold of none;
    ``replicas.offload_module`` does it for its replicas too."""
    placement = _placements.pop(module, None)
    if placement is not None:
        placement.evict()


def placements_on(device: torch.device) -> list[Placement]:
    """The placements of all modules that have been on a device."""
    return [placement for placement in _placements.values() if placement.device == device]


def through(ring: Ring, number: int):
    """A block's forward by way of the ring."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return ring.run(number, *args, **kwargs)

    return forward


def live(layer: nn.Module, device: torch.device):
    """A modulation that was not precomputed: its weights come to the device for this one call."""

    def forward(vec: Tensor):
        return type(layer).forward(copied_to(layer, device), vec)

    return forward
