"""A block's tensors in one flat buffer, so that one copy moves them all.

host:   | a.codes | a.scale | a.bias | b.codes ...   every tensor at a multiple of 256 bytes
device: the same bytes in a slot, read through a twin of the block whose tensors are views of it
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

ALIGNMENT = 256
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class TensorSlice:
    """Where one tensor lies in the buffer."""

    name: str
    dtype: torch.dtype
    shape: torch.Size
    start: int
    size: int


def named_tensors(
    module: nn.Module, left_out: Collection[int] = ()
) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Full name, owner, attribute and tensor (any shape) of all parameters and buffers.

    Those of modules in ``left_out`` (ids), and of what is inside them now, are not among them.
    """
    inside = None
    for path, owner in module.named_modules():
        if inside is not None and path.startswith(inside):
            continue  # also what was attached after ids were taken
        inside = None
        if id(owner) in left_out:
            inside = f"{path}." if path else ""
            continue
        for table in (owner._parameters, owner._buffers):
            for attribute, tensor in table.items():
                if tensor is not None:
                    yield f"{path}.{attribute}", owner, attribute, tensor


def in_place_of(tensor: Tensor, new: Tensor) -> Tensor:
    """Another tensor, of any shape, as the parameter or buffer that one was.

    Whether it requires a gradient stays too: matmul folds its input by that, to other bits.
    """
    if isinstance(tensor, nn.Parameter) and not isinstance(new, nn.Parameter):
        with torch.inference_mode(False):
            return nn.Parameter(new, tensor.requires_grad)
    return new


def twin(module: M, tensors: dict[int, Tensor]) -> M:
    """A module like another, some tensors (by id) replaced; the rest is shared."""
    memo: dict[int, object] = {}
    for _, _, _, tensor in named_tensors(module):
        memo[id(tensor)] = in_place_of(tensor, tensors.get(id(tensor), tensor))
    copied = copy.deepcopy(module, memo)
    copied.__dict__.pop("forward", None)
    return copied


def copied_to(module: M, device: torch.device) -> M:
    """The module itself where it is on the device, else a twin with its tensors copied there."""
    moved = {id(t): t.to(device) for _, _, _, t in named_tensors(module) if t.device != device}
    return twin(module, moved) if moved else module


class BufferLayout:
    """Where a module's tensors lie in one flat buffer of ``size`` bytes."""

    def __init__(self, moved: Iterable[tuple[str, Tensor]]) -> None:
        self.places: list[TensorSlice] = []
        end = 0
        for name, tensor in moved:
            self.places.append(TensorSlice(name, tensor.dtype, tensor.shape, end, tensor.nbytes))
            end += aligned(tensor.nbytes)
        self.size = end

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors in a buffer (size,) uint8 or longer, each in the shape that it had."""
        with torch.inference_mode(False):
            return [view_of(buffer, place) for place in self.places]


def aligned(size: int) -> int:
    """Bytes that a tensor takes in a buffer."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def view_of(buffer: Tensor, place: TensorSlice) -> Tensor:
    """The tensor at a place of a buffer (size,) uint8, in the place's shape."""
    return buffer[place.start : place.start + place.size].view(place.dtype).view(place.shape)
