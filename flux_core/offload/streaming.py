"""A model whose blocks pass through a ring while the rest of it stays on the device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..transformer import FluxBody, ModulationLayer
from .pack import PackedBlock, copied_to, named_tensors
from .ring import Ring, RingReport

_packed: weakref.WeakKeyDictionary[nn.Module, PackedBlock] = weakref.WeakKeyDictionary()


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model in the order in which they run; empty where it has none."""
    if isinstance(module, FluxBody):
        return [*module.double_blocks, *module.single_blocks]
    for found in module.modules():  # T5
        layers = getattr(found, "block", None)
        if isinstance(layers, nn.ModuleList):
            return list(layers)
    return []


def parts_of(block: nn.Module) -> set[int]:
    return {id(part) for part in block.modules()}


def modulation_parts(block: nn.Module) -> set[int]:
    """Modules inside a block that never travel: they are computed ahead of the run."""
    found = (m for m in block.modules() if isinstance(m, ModulationLayer))
    return {number for layer in found for number in parts_of(layer)}


def pack(block: nn.Module, pin: bool) -> PackedBlock:
    """A block's buffer, made once and kept as long as the block."""
    packed = _packed.get(block)
    if packed is None or not packed.whole:
        packed = _packed[block] = PackedBlock(block, modulation_parts(block), pin)
    return packed


class Lent:
    """Copies on the device in the place of a module's tensors; ``give_back`` restores its own.

    Nothing is copied back: weights do not change in a run.
    """

    def __init__(self, module: nn.Module, left_out: set[int], device: torch.device) -> None:
        self.homes: list[tuple[dict, str, Tensor]] = []
        made: dict[int, Tensor] = {}  # a tensor with two owners is copied once
        try:
            for _, owner, attribute, tensor in list(named_tensors(module, left_out)):
                if tensor.device == device:
                    continue
                if id(tensor) not in made:
                    new = tensor.detach().to(device)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, tensor.requires_grad)
                    made[id(tensor)] = new
                table = owner._parameters if attribute in owner._parameters else owner._buffers
                self.homes.append((table, attribute, tensor))
                table[attribute] = made[id(tensor)]  # type: ignore[assignment]
        except BaseException:
            self.give_back()
            raise

    def give_back(self) -> None:
        for table, attribute, tensor in self.homes:
            table[attribute] = tensor
        self.homes = []


@contextmanager
def streamed(
    module: nn.Module,
    device: torch.device,
    *,
    resident: int = 0,
    slots: int = 2,
    poison: bool = False,
) -> Iterator[RingReport]:
    """A model's blocks pass through a ring inside the block of this ``with``.

    Args:
        resident: bytes for blocks that stay on the device; the first ones, double blocks as FLUX.1
            has them first, do twice the work for their bytes.
        slots: buffers of the ring.
        poison: fill buffers with NaN when they are released.
    """
    blocks = blocks_of(module)
    staying: list[nn.Module] = []
    for block in blocks:
        size = sum(t.nbytes for *_, t in named_tensors(block, modulation_parts(block)))
        if size > resident:
            break
        resident -= size
        staying.append(block)
    moving = blocks[len(staying) :]
    if len(moving) <= slots:  # as many slots as blocks: they may as well stay
        staying, moving = blocks, []
    left_out = set[int]().union(*map(parts_of, moving), *map(modulation_parts, staying))
    lent: Lent | None = None
    ring: Ring | None = None
    layers = [m for m in module.modules() if isinstance(m, ModulationLayer)]
    try:
        lent = Lent(module, left_out, device)
        if moving:
            packed = [pack(block, pin=device.type == "cuda") for block in moving]
            ring = Ring(packed, device, slots, poison)
            for number, block in enumerate(moving):
                block.forward = through(ring, number)
        for layer in layers:
            layer.forward = live(layer, device)
        report = ring.report if ring is not None else RingReport()
        report.resident = sum(t.nbytes for *_, t in named_tensors(module, left_out))
        report.resident += sum(slot.buffer.nbytes for slot in ring.slots) if ring else 0
        yield report
    finally:
        for owner in (*moving, *layers):
            owner.__dict__.pop("forward", None)
        if ring is not None:
            ring.close()
        if lent is not None:
            lent.give_back()


def through(ring: Ring, number: int):
    """A block's forward by way of the ring."""

    def forward(*args, **kwargs):
        return ring.run(number, *args, **kwargs)

    return forward


def live(layer: ModulationLayer, device: torch.device):
    """A modulation that nobody foresaw: its weights come to the device for this one call."""

    def forward(vec: Tensor):
        return type(layer).forward(copied_to(layer, device), vec)

    return forward
