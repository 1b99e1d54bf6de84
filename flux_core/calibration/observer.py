"""Observing what layers read while a model runs, by their names, also where blocks are streamed.

A ring runs a block by a twin of it that several blocks share. So a layer inside a block is told by
the block whose turn it is, and by its place there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..quant.apply import linears

#: Called with a layer's name and its inputs (..., in).
Observer = Callable[[str, Tensor], None]


def repeated_blocks(module: nn.Module) -> dict[str, nn.Module]:
    """The modules that a model is a row of, by name: the outermost that are in lists."""
    blocks: dict[str, nn.Module] = {}
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and not any(name.startswith(f"{n}.") for n in blocks):
            blocks |= {f"{name}.{i}": block for i, block in enumerate(child)}
    return blocks


@contextmanager
def observe(module: nn.Module, observer: Observer) -> Iterator[None]:
    """Call ``observer`` for all layers that may be quantized, inside the block of this ``with``."""
    blocks = repeated_blocks(module)
    turn: list[str] = []  # the block that is running, and behind it the one its twin was made of

    def begin(name: str) -> Callable[..., None]:
        return lambda *_: turn.append(name)

    def end(*_: object) -> None:
        turn.clear()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        owner = next((block for block in blocks if name.startswith(f"{block}.")), None)
        place = name if owner is None else name[len(owner) :]

        def observe_inputs(_: nn.Module, args: tuple[Any, ...]) -> None:
            (x,) = args
            if not x.is_meta:  # a plan counts bytes there
                observer(turn[0] + place if turn and owner is not None else name, x.detach())

        return observe_inputs

    handles = []
    for name, block in blocks.items():
        handles.append(block.register_forward_pre_hook(begin(name)))
        handles.append(block.register_forward_hook(end))
    for name, _, _, layer in linears(module):
        handles.append(layer.register_forward_pre_hook(hook(name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
