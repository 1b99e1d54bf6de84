"""What computing takes beside the weights: run on meta, where nothing is computed, and counted.

Counted are the bytes of all tensors alive at once. What a kernel takes inside (a convolution's
workspace, say) is not, nor what a caching allocator loses between blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..quant import forget_matrices
from .pack import named_tensors, twin


class LiveBytes(TorchDispatchMode):
    """Counts bytes of storages made inside that are alive: ``live`` now, ``peak`` at most; of one
    kind of device, or of all."""

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device = device
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        inside = {
            t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)
        }
        for tensor in tree_iter(out):
            if not isinstance(tensor, Tensor) or self.device not in (None, tensor.device.type):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.seen or key in inside:
                continue
            size = storage.nbytes()
            self.seen.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.forget, key, size)
        return out

    def forget(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


class Fused(torch.autograd.Function):
    """What a fused attention takes: its output, and for gradients a number a row."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """An empty output for q, k and v, all of them (B, H, L, d).

        Axis letters: B pictures, H heads, L tokens, d width of a head.
        """
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        """Empty gradients of q, k and v, each (B, H, L, d)."""
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


class FusedAttention(TorchFunctionMode):
    """Attention as a fused kernel has it, which never holds the matrix of all pairs."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return Fused.apply(*args[:3])
        return func(*args, **(kwargs or {}))


def on_meta(module: nn.Module) -> nn.Module:
    """A module like another without numbers, and without the hooks of those who want some.

    It is not compiled: a function that is first called while something is counted is never compiled
    again.
    """
    small = twin(module, {id(t): t.to("meta") for *_, t in named_tensors(module)})
    for part in small.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
        if getattr(part, "compiled", None) is not None:
            part.compiled = None  # type: ignore[assignment]
    return small


def peak_bytes(
    function: Callable[[], object], gradients: bool = False, device: str | None = None
) -> int:
    """Most bytes alive at once while a function of tensors on meta runs, with a graph for
    ``gradients`` or without; of one kind of device, or of all."""
    forget_matrices("meta")
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        counted = stack.enter_context(LiveBytes(device))
        stack.enter_context(FusedAttention())
        function()
    return counted.peak
