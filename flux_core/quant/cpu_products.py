"""Products of 16 bits on a CPU that has no instructions for them.

torch multiplies bfloat16 and float16 number by number where a CPU (most desktops', say) lacks the
instructions: a hundred times slower than float32. The models' ``forward`` makes them in float32
and rounds once, which is what the instructions do.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map

F = TypeVar("F", bound=Callable[..., Any])
#: What multiplies; attention is fast everywhere.
PRODUCTS = {
    functional.linear,
    functional.conv2d,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
    Tensor.mm,
    Tensor.bmm,
}


def slow_dtypes() -> frozenset[torch.dtype]:
    """Dtypes of two bytes whose products this CPU has no instructions for."""
    supported = {
        torch.bfloat16: getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None),
        torch.float16: getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None),
    }
    return frozenset(dtype for dtype, ask in supported.items() if ask is None or not ask())


SLOW_DTYPES = slow_dtypes()


def is_slow(tensor: object) -> bool:
    return (
        isinstance(tensor, Tensor) and tensor.device.type == "cpu" and tensor.dtype in SLOW_DTYPES
    )


class Float32Products(TorchFunctionMode):
    """Products of slow dtypes on a CPU are made in float32; all else is as it was."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in PRODUCTS:
            return func(*args, **kwargs)
        dtypes = {value.dtype for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)}
        if len(dtypes) != 1 or not any(is_slow(value) for value in tree_iter((args, kwargs))):
            return func(*args, **kwargs)

        def wide(value: Any) -> Any:
            return value.float() if is_slow(value) else value

        return func(*tree_map(wide, args), **tree_map(wide, kwargs)).to(dtypes.pop())


def fast_products(device: torch.device) -> AbstractContextManager[object]:
    """Products of 16 bits are fast inside the block of this ``with``, where ``device`` is a CPU.

    A backward pass needs one of its own.
    """
    return Float32Products() if SLOW_DTYPES and device.type == "cpu" else nullcontext()


def with_fast_products(method: F) -> F:
    """A method of a module whose products are fast where its inputs are on a CPU."""
    if not SLOW_DTYPES:
        return method

    @wraps(method)
    def fast(*args: Any, **kwargs: Any) -> Any:
        inputs = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        with fast_products(next(inputs).device):
            return method(*args, **kwargs)

    return cast(F, fast)
