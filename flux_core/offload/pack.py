"""A block's tensors in one flat buffer, so that one copy moves them all.

host:   | a.codes | a.scale | a.bias | b.codes ...   every tensor at a multiple of 256 bytes
device: the same bytes in a slot, read through a twin of the block whose tensors are views of it
"""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..quant import quantized_linears

log = logging.getLogger(__name__)

ALIGNMENT = 256
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Place:
    """Where one tensor lies in the buffer."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    start: int
    size: int


def named_tensors(
    module: nn.Module, left_out: set[int]
) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Full name, owner, attribute and tensor of all parameters and buffers, but of some modules."""
    for path, owner in module.named_modules():
        if id(owner) in left_out:
            continue
        for table in (owner._parameters, owner._buffers):
            for attribute, tensor in table.items():
                if tensor is not None:
                    yield f"{path}.{attribute}", owner, attribute, tensor


def shared(module: nn.Module) -> dict[int, object]:
    """What twins of a module share with it instead of copying: a memo for ``deepcopy``."""
    return {id(layer.format): layer.format for layer in quantized_linears(module)}


def twin(module: M, tensors: dict[int, Tensor]) -> M:
    """A module like another, some tensors (by id) replaced; the rest is shared."""
    memo: dict[int, object] = dict(shared(module))
    for _, _, _, tensor in named_tensors(module, set()):
        new = tensors.get(id(tensor), tensor)
        if isinstance(tensor, nn.Parameter) and not isinstance(new, nn.Parameter):
            new = nn.Parameter(new, requires_grad=False)
        memo[id(tensor)] = new
    made = copy.deepcopy(module, memo)
    made.__dict__.pop("forward", None)
    return made


def copied_to(module: M, device: torch.device) -> M:
    """The module itself where it is on the device, else a twin with its tensors copied there."""
    found = {
        id(t): t.to(device) for _, _, _, t in named_tensors(module, set()) if t.device != device
    }
    return twin(module, found) if found else module


class PackedBlock:
    """A block whose tensors are views of one flat host buffer.

    Modules in ``left_out`` (ids) keep their own tensors and never travel.
    """

    def __init__(self, block: nn.Module, left_out: set[int], pin: bool) -> None:
        self._block = weakref.ref(block)
        self.left_out = left_out
        found = list(named_tensors(block, left_out))
        self.places: list[Place] = []
        end = 0
        for name, _, _, tensor in found:
            size = tensor.numel() * tensor.element_size()
            self.places.append(Place(name, tensor.dtype, tensor.shape, end, size))
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self.size = end
        self.flat = host_buffer(end, pin)
        for place, (_, owner, attribute, tensor) in zip(self.places, found, strict=True):
            view = view_of(self.flat, place)
            view.copy_(tensor)
            if isinstance(tensor, nn.Parameter):
                tensor.data = view
            else:
                owner._buffers[attribute] = view

    @property
    def block(self) -> nn.Module:
        block = self._block()
        assert block is not None, "a packed block is kept by its model"
        return block

    @property
    def whole(self) -> bool:
        """Whether the block's tensors still are the buffer's."""
        found = [t for _, _, _, t in named_tensors(self.block, self.left_out)]
        return len(found) == len(self.places) and all(
            t.device.type == "cpu" and t.data_ptr() == self.flat.data_ptr() + place.start
            for t, place in zip(found, self.places, strict=True)
        )

    @property
    def kind(self) -> Hashable:
        """Blocks of one kind can use one twin: same class, same layout, same arithmetic."""
        arithmetic = tuple(
            (layer.format.name, layer.format.block(layer.in_features), layer.compute)
            for layer in quantized_linears(self.block)
        )
        return type(self.block), tuple(self.places), arithmetic

    def twin_on(self, buffer: Tensor) -> nn.Module:
        """The block reading a buffer of the same layout."""
        tensors = [t for _, _, _, t in named_tensors(self.block, self.left_out)]
        views = [view_of(buffer, place) for place in self.places]
        return twin(self.block, {id(t): v for t, v in zip(tensors, views, strict=True)})


def host_buffer(size: int, pin: bool) -> Tensor:
    """Bytes on the host, pinned if asked for and possible: copies from other memory stall."""
    if pin:
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError as error:
            log.warning("host memory cannot be pinned, copies will be slower: %s", error)
    return torch.empty(size, dtype=torch.uint8)


def view_of(buffer: Tensor, place: Place) -> Tensor:
    return buffer[place.start : place.start + place.size].view(place.dtype).view(place.shape)
