"""A block whose forward pass keeps nothing but its inputs, and is made again for the backward pass.

    forward    B0 B1 ... Bn                 no graph; each block's inputs are kept
    backward   Bn ... B1 B0                 each with a graph of its own, for as long as it is there

So a block's weights are needed twice, for as long as it computes, and the ring that streams them
has one more order to turn in. The inputs of all blocks are what is kept: on the device, or on the
host where that is too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from .blocks import trained_parameters

#: Gives the block to compute with, for the length of a ``with``.
Using = Callable[[], AbstractContextManager[nn.Module]]


class OnHost:
    """A tensor that waits on the host, from pinned memory to pinned memory without the host."""

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device
        pinned = tensor.device.type == "cuda"
        self.copy = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        self.copy.copy_(tensor, non_blocking=pinned)

    def back(self) -> Tensor:
        """The tensor, of any shape, on its device again."""
        return self.copy.to(self.device, non_blocking=True)


class GradientCheckpoint(torch.autograd.Function):
    """The outputs of a block for tensors that may have gradients; parameters come after them, so
    that autograd knows of theirs."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The block's outputs for its inputs, which its parameters follow; all of any shape."""
        ctx.call = call
        ctx.needed = [t.requires_grad for t in tensors]
        inputs = tensors[: call.inputs]
        ctx.kept = [OnHost(t) if call.on_host and t.ndim == 3 else t for t in inputs]
        return call.compute(call.first, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of inputs and parameters, each in the shape of its tensor, or None.

        ``grads`` are those of the outputs, of any shape.
        """
        call: Call = ctx.call
        needed = ctx.needed
        with torch.enable_grad():
            kept = [k.back() if isinstance(k, OnHost) else k.detach() for k in ctx.kept]
            inputs = [k.requires_grad_(need) for k, need in zip(kept, needed, strict=False)]
            wanted = [t for t in (*inputs, *call.parameters) if t.requires_grad]
            with call.second() as block:
                outputs = call.outputs(block, inputs)
                gradients = iter(torch.autograd.grad(outputs, wanted, grads, allow_unused=True))
        return None, *(next(gradients) if need else None for need in needed)


class Call:
    """One call of a block: its arguments, and where its weights come from in either pass."""

    def __init__(
        self,
        first: Using,
        second: Using,
        parameters: Sequence[nn.Parameter],
        on_host: bool,
        args: object,
    ) -> None:
        self.first, self.second, self.on_host = first, second, on_host
        self.parameters = parameters
        flat, self.spec = tree_flatten(args)
        self.places = [i for i, value in enumerate(flat) if isinstance(value, Tensor)]
        # not the tensors themselves: what is kept of them is the function's business
        self.flat = [None if i in self.places else value for i, value in enumerate(flat)]
        self.inputs = len(self.places)

    def outputs(self, block: nn.Module, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What a block gives for tensors of any shape in the places of its arguments' tensors."""
        flat = list(self.flat)
        for place, tensor in zip(self.places, tensors, strict=True):
            flat[place] = tensor
        result = type(block).forward(block, *tree_unflatten(flat, self.spec))
        return result if isinstance(result, tuple) else (result,)

    def compute(self, using: Using, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The same from the block that ``using`` gives; tensors of any shape."""
        with using() as block:
            return self.outputs(block, tensors)


def gradient_checkpointed(block: nn.Module, first: Using, second: Using, on_host: bool = False):
    """A forward for a block of which gradients are wanted; without gradients it is called once."""
    parameters = list(trained_parameters(block))

    def forward(*args: Any) -> Any:
        if not torch.is_grad_enabled():
            with first() as result:
                return type(result).forward(result, *args)
        call = Call(first, second, parameters, on_host, args)
        tensors = [t for t in tree_flatten(args)[0] if isinstance(t, Tensor)]
        result = GradientCheckpoint.apply(call, *tensors, *parameters)
        outputs = list(cast(Iterable[Tensor], result))
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    return forward
