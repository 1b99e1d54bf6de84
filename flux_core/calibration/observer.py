"""What layers read while a model runs, by their names, also where blocks pass through a ring.

A ring runs a block by a twin of it that several blocks share. So a layer inside a block is told by
the block whose turn it is, and by its place there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..quant.apply import linears

#: A layer's name, and its inputs (..., in).
Observer = Callable[[str, Tensor], None]


def repeated(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that a model is a row of, by name: the outermost that are in lists."""
    found: dict[str, nn.Module] = {}
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and not any(name.startswith(f"{n}.") for n in found):
            found |= {f"{name}.{i}": block for i, block in enumerate(child)}
    return found


@contextmanager
def observing(module: nn.Module, told: Observer) -> Iterator[None]:
    """Tell what every layer that may be quantized reads inside the block of this ``with``."""
    blocks = repeated(module)
    turn: list[str] = []  # the block that is running, and behind it the one its twin was made of

    def begins(name: str):
        return lambda *_: turn.append(name)

    def ends(*_) -> None:
        turn.clear()

    def heard(name: str):
        owner = next((block for block in blocks if name.startswith(f"{block}.")), None)
        place = name if owner is None else name[len(owner) :]

        def hear(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            (x,) = args
            if not x.is_meta:  # a plan counts bytes there
                told(turn[0] + place if turn and owner is not None else name, x.detach())

        return hear

    handles = []
    for name, block in blocks.items():
        handles += [
            block.register_forward_pre_hook(begins(name)), block.register_forward_hook(ends)
        ]  # fmt: skip
    for name, _, _, layer in linears(module):
        handles.append(layer.register_forward_pre_hook(heard(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
