"""Blocks compiled, one function a class, whether they are resident or read a ring's buffers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from .blocks import Block


@cache
def compiled_forward(kind: type[Block], backend: str) -> Callable:
    """``torch.compile`` of a block class's forward, made once."""
    return torch.compile(kind.forward, backend=backend, dynamic=False)


def compile_blocks(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """Let a transformer's or ControlNet's blocks run compiled, whether resident or streamed.

    The first step compiles each class of blocks once for a size of picture; other prompts, seeds
    and numbers of steps use what there is. An empty ``backend`` undoes it. Returns the model.
    """
    for block in model.modules():
        if isinstance(block, Block):
            block.compiled = compiled_forward(type(block), backend) if backend else None
    return model
