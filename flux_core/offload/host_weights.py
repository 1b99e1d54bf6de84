"""Where the tensors of a block wait on the host, and how they come to the device.

pinned:    one flat buffer that the card copies from by itself
scattered: wherever they are, also in a mapped file; copied one by one
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator

import torch
from torch import Tensor, nn

from .blocks import is_for_a_run, is_trained, twin_keys
from .memory import PINS, device_buffer
from .pack import BufferLayout, in_place_of, named_tensors, twin


class HostWeights:
    """Some of a module's tensors: all but those of modules in ``left_out`` (ids), and without those
    of LoRAs' branches, or with ``branches`` those alone. What is being trained never moves.

    ``onloaded`` are their copies on a device, in one buffer, standing in the module in their place.
    Nothing is copied back: weights do not change in a run.
    """

    def __init__(self, module: nn.Module, left_out: set[int], branches: bool = False) -> None:
        self._module = weakref.ref(module)
        self.left_out, self.branches = left_out, branches
        self.onloaded: Tensor | None = None
        self.copies: list[Tensor] = []
        self.flat: Tensor | None = None
        self.scan()

    def scan(self) -> None:
        """Take note of what the module holds now."""
        #: owner's table, attribute, which of ``tensors``; two owners may share one
        self.owners: list[tuple[dict[str, Tensor], str, int]] = []
        self.tensors: list[Tensor] = []
        numbers: dict[int, int] = {}
        names: list[str] = []
        for name, table, attribute, tensor in self.entries():
            if id(tensor) not in numbers:
                numbers[id(tensor)] = len(self.tensors)
                self.tensors.append(tensor)
                names.append(name)
            self.owners.append((table, attribute, numbers[id(tensor)]))
        self.layout = BufferLayout(zip(names, self.tensors, strict=True))

    @property
    def module(self) -> nn.Module:
        module = self._module()
        assert module is not None, "host weights are kept by their module"
        return module

    @property
    def pinned(self) -> bool:
        """Whether a card can copy it by itself."""
        return self.flat is not None or not self.size

    @property
    def size(self) -> int:
        return self.layout.size

    def entries(self) -> Iterator[tuple[str, dict, str, Tensor]]:
        """Name, owner's table, attribute and tensor (any shape) of what the module holds now."""
        for name, owner, attribute, tensor in named_tensors(self.module, self.left_out):
            if is_trained(owner) or is_for_a_run(owner) != self.branches:
                continue
            held = attribute in owner._parameters
            yield name, owner._parameters if held else owner._buffers, attribute, tensor

    @property
    def unchanged(self) -> bool:
        """Whether the module still holds the tensors of the last look, or their copies."""
        now = [(id(table), attribute, id(t)) for _, table, attribute, t in self.entries()]
        held = self.tensors if self.onloaded is None else self.copies
        then = [(id(table), attribute, id(held[n])) for table, attribute, n in self.owners]
        where = None if self.onloaded is None else self.onloaded.device
        return now == then and (where is None or all(t.device == where for t in held))

    def pin(self, budget: int, move: bool = True) -> None:
        """Move the tensors into one pinned buffer, where the budget has room for it.

        Without ``move`` only where they lie in one already, as those of a replica do: whoever else
        has them may be copying them now.
        """
        if self.flat is not None or not self.size:
            return
        if any(t.device.type != "cpu" for t in self.tensors):
            return
        starts = [place.start for place in self.layout.places]
        self.flat = PINS.around(self.tensors, starts, self.size)
        if self.flat is not None or not move:
            return
        flat = PINS.buffer(self.size, budget)
        if flat is None:
            return
        for view, tensor in zip(self.layout.views(flat), self.tensors, strict=True):
            view.copy_(tensor)
            tensor.data = view  # the object stays, whoever holds it
        self.flat = flat

    def copy_into(self, buffer: Tensor) -> None:
        """Copy the tensors to where a buffer has them, (size,) uint8 or longer.

        From pinned memory it copies without waiting.
        """
        if self.flat is not None:
            buffer[: self.size].copy_(self.flat, non_blocking=True)
            return
        for view, tensor in zip(self.layout.views(buffer), self.tensors, strict=True):
            view.copy_(tensor.detach())

    def onload(self, device: torch.device, separate: bool = False) -> None:
        """Put copies on the device in the place of the module's tensors.

        ``separate``: its memory is apart from the host's, so that those on the CPU are copied too.
        """
        if self.onloaded is not None or not self.tensors:
            return
        kinds = {t.device.type if device.type == "cpu" else t.device for t in self.tensors}
        if not separate and kinds == {device.type if device.type == "cpu" else device}:
            return
        buffer = device_buffer(self.size, device)
        self.copy_into(buffer)
        views = self.layout.views(buffer)
        self.copies = [in_place_of(t, view) for t, view in zip(self.tensors, views, strict=True)]
        for table, attribute, number in self.owners:
            table[attribute] = self.copies[number]
        self.onloaded = buffer

    def offload(self) -> int:
        """Let the module have its own tensors again; returns the bytes that this frees."""
        if self.onloaded is None:
            return 0
        for table, attribute, number in self.owners:
            table[attribute] = self.tensors[number]
        self.onloaded, self.copies = None, []
        return self.size

    @property
    def kind(self) -> Hashable:
        """Blocks of one kind can use one twin: same class, same layout, same arithmetic. One that
        is being trained shares its parameters with its twin, and has one of its own."""
        return type(self.module), tuple(self.layout.places), twin_keys(self.module)

    def views_on(self, buffer: Tensor) -> dict[int, Tensor]:
        """For each tensor, by id, the same in a buffer of this layout, (size,) uint8 or longer."""
        return {
            id(t): view for t, view in zip(self.tensors, self.layout.views(buffer), strict=True)
        }

    def twin_on(self, buffer: Tensor) -> nn.Module:
        """The block reading a buffer of the same layout, (size,) uint8 or longer."""
        return twin(self.module, self.views_on(buffer))


class WeightsWithBranches:
    """A block's tensors, and behind them those of the LoRAs that are beside it for a run."""

    def __init__(self, own: HostWeights, branches: HostWeights) -> None:
        self.own, self.branches = own, branches
        self.module = own.module
        self.size = own.size + branches.size
        self.pinned = own.pinned and branches.pinned
        self.kind = (own.kind, tuple(branches.layout.places))

    def copy_into(self, buffer: Tensor) -> None:
        """Copy both to where a buffer has them, (size,) uint8 or longer."""
        self.own.copy_into(buffer[: self.own.size])
        self.branches.copy_into(buffer[self.own.size :])

    def twin_on(self, buffer: Tensor) -> nn.Module:
        """The block reading a buffer that has both, (size,) uint8 or longer."""
        views = self.own.views_on(buffer[: self.own.size])
        return twin(self.module, views | self.branches.views_on(buffer[self.own.size :]))
