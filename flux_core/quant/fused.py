"""Passes around a product in one kernel each, on cards where Triton's kernels are right.

Between two products a step normalises, modulates, rotates, applies a GELU and rounds to codes. By
torch's own operations each is a pass over memory, and those take longer than 8-bit products. Here
each group is one pass (``triton_kernels``), eager as well as compiled, for models of 16 bits too.
``serves`` says where; elsewhere, and on every CPU, callers use torch's operations.

A device is tried once (``error_on``): every kernel's result is compared with torch's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .notices import warn_once
from .rounding import FLOAT8, INT8, PLAIN, empty_rows

#: The widest row that a kernel keeps in registers.
MOST_WIDE = 32768
#: What Triton has kernels for, as NVIDIA counts.
OLDEST = (8, 0)
DTYPES = (torch.bfloat16, torch.float16)
#: e4m3 alone loses 2.6 %.
TOLERANCE = 0.04

_by_torch: ContextVar[bool] = ContextVar("by_torch", default=False)
_ready: dict[int, bool] = {}


class Rounded(NamedTuple):
    """Tokens as a kernel multiplies them: codes (rows, in) and token scales (rows, 1) float32."""

    codes: Tensor
    scales: Tensor


@contextmanager
def by_torch() -> Iterator[None]:
    """Use torch's operations alone, as training does, whose two passes must agree."""
    token = _by_torch.set(True)
    try:
        yield
    finally:
        _by_torch.reset(token)


def serves(x: Tensor, width: int = 0) -> bool:
    """Whether the kernels can be used for x (..., D), and for rows of a width beside that."""
    if x.device.type != "cuda" or x.requires_grad or x.dtype not in DTYPES or not x.numel():
        return False
    if max(x.shape[-1], width) > MOST_WIDE:
        return False
    if torch.compiler.is_compiling():
        return _ready.get(x.device.index, False)
    return not _by_torch.get() and ready(x.device)


def ready(device: torch.device) -> bool:
    """Whether a device's kernels are right; tried once."""
    if device.type != "cuda":
        return False
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _ready:
        try:
            old = torch.cuda.get_device_capability(index) < OLDEST
            reason = "" if not old else "its instructions are too old"
            reason = reason or error_on(torch.device("cuda", index))
        except torch.OutOfMemoryError:
            return False  # says nothing of the kernels
        except Exception as error:  # whatever it is, it is the reason
            reason = f"{type(error).__name__}: {(str(error).strip() or '-').splitlines()[0][:120]}"
        _ready[index] = not reason
        if reason:
            warn_once(f"fused passes are off on {device}: {reason}")
    return _ready[index]


def kernels() -> ModuleType:
    """The module of Triton's kernels; raises ImportError where there is no Triton."""
    from . import triton_kernels

    return triton_kernels


def _on(x: Tensor):
    """Launch on the device of x, where there are several."""
    alone = x.device.type != "cuda" or torch.cuda.device_count() == 1
    return nullcontext() if alone else torch.cuda.device(x.device)


@torch.library.custom_op(
    "fluxfit::norm_modulate",
    mutates_args=(),
    schema="(Tensor x, Tensor shift, Tensor scale, int rounding) -> (Tensor, Tensor)",
)
def _norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, rounding: int) -> tuple[Tensor, Tensor]:
    return kernels().launch_norm_modulate(x, shift, scale, rounding)


@_norm_modulate.register_fake
def _(x: Tensor, shift: Tensor, scale: Tensor, rounding: int) -> tuple[Tensor, Tensor]:
    return empty_rows(x, x.shape[0] * x.shape[1], x.shape[2], rounding)


@torch.library.custom_op(
    "fluxfit::join_gelu",
    mutates_args=(),
    schema="(Tensor? a, Tensor? h, int rounding) -> (Tensor, Tensor)",
)
def _join_gelu(a: Tensor | None, h: Tensor | None, rounding: int) -> tuple[Tensor, Tensor]:
    return kernels().launch_join_gelu(a, h, rounding)


@_join_gelu.register_fake
def _(a: Tensor | None, h: Tensor | None, rounding: int) -> tuple[Tensor, Tensor]:
    parts = [part for part in (a, h) if part is not None]
    return empty_rows(parts[0], parts[0].shape[0], sum(p.shape[1] for p in parts), rounding)


@torch.library.custom_op(
    "fluxfit::norm_rotary",
    mutates_args=(),
    schema="(Tensor[] projected, Tensor[] scales, Tensor cos, Tensor sin, int heads)"
    " -> (Tensor, Tensor, Tensor)",
)
def _norm_rotary(
    projected: list[Tensor], scales: list[Tensor], cos: Tensor, sin: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    return kernels().launch_norm_rotary(projected, scales, cos, sin, heads)


@_norm_rotary.register_fake
def _(
    projected: list[Tensor], scales: list[Tensor], cos: Tensor, sin: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    first = projected[0]
    total, width = sum(part.shape[1] for part in projected), first.shape[2] // 3
    q = first.new_empty(first.shape[0], total, heads, width // heads)
    v = torch.empty_like(q) if len(projected) > 1 else first.new_empty((0,))
    return q, torch.empty_like(q), v


@torch.library.custom_op(
    "fluxfit::int8_product",
    mutates_args=(),
    schema="(Tensor a, Tensor codes, Tensor tokens, Tensor rows, Tensor? bias, ScalarType dtype)"
    " -> Tensor",
)
def _int8_product(
    a: Tensor, codes: Tensor, tokens: Tensor, rows: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return kernels().launch_int8_product(a, codes, tokens, rows, bias, dtype)


@_int8_product.register_fake
def _(
    a: Tensor, codes: Tensor, tokens: Tensor, rows: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return a.new_empty(a.shape[0], codes.shape[0], dtype=dtype)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, rounding: int = PLAIN) -> Rounded:
    """Layer norm of x (B, T, D) times 1 + scale, plus shift, each (B, 1 or T, D), as rows (B T, D);
    without rounding the codes are x's dtype and the scales empty."""
    if torch.compiler.is_compiling():
        return Rounded(*torch.ops.fluxfit.norm_modulate(x, shift, scale, rounding))
    with _on(x):
        return Rounded(*kernels().launch_norm_modulate(x, shift, scale, rounding))


def join_gelu(a: Tensor | None, h: Tensor | None, rounding: int = PLAIN) -> Rounded:
    """a (..., A) beside the tanh-approximated GELU of h (..., H), either left out or not, as rows
    (rows, A + H); without rounding the codes are their dtype and the scales empty."""
    a, h = (None if part is None else part.flatten(0, -2) for part in (a, h))
    if torch.compiler.is_compiling():
        return Rounded(*torch.ops.fluxfit.join_gelu(a, h, rounding))
    with _on(h if a is None else a):  # type: ignore[arg-type]
        return Rounded(*kernels().launch_join_gelu(a, h, rounding))


def norm_rotary(
    projected: Sequence[Tensor],
    scales: Sequence[Tensor],
    rotary: tuple[Tensor, Tensor],
    heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one stream or two (B, T, 3 H d), normalised with their scales
    (d,) (query, key of each stream in turn) and rotated: each (B, L, H, d)."""
    cos, sin = (part.contiguous() for part in rotary)
    if torch.compiler.is_compiling():
        parts = torch.ops.fluxfit.norm_rotary(list(projected), list(scales), cos, sin, heads)
    else:
        with _on(projected[0]):
            parts = kernels().launch_norm_rotary(list(projected), list(scales), cos, sin, heads)
    q, k, v = parts
    if len(projected) == 1:
        v = projected[0].unflatten(-1, (3, heads, -1)).select(2, 2)
    return q, k, v


def int8_product(
    inputs: Rounded, codes: Tensor, rows: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Rounded tokens (M, K) times int8 codes (N, K) with scales of N rows, and a bias (N,):
    (M, N) in ``dtype``."""
    if torch.compiler.is_compiling():
        return torch.ops.fluxfit.int8_product(inputs.codes, codes, inputs.scales, rows, bias, dtype)
    with _on(codes):
        return kernels().launch_int8_product(inputs.codes, codes, inputs.scales, rows, bias, dtype)


def error_on(device: torch.device) -> str:
    """What a device's kernels get wrong, in words; empty where they are right."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, torch.bfloat16)

    roundings = [PLAIN, INT8]
    if torch.cuda.get_device_capability(device) >= (8, 9):
        roundings.append(FLOAT8)
    results: dict[str, tuple[Tensor, Tensor]] = {}
    with torch.inference_mode():
        x, shift, scale, a = random(2, 9, 96), random(2, 1, 96), random(2, 1, 96), random(18, 32)
        h = x.flatten(0, 1)
        normal = torch.addcmul(shift, F.layer_norm(x, (96,), eps=1e-6), 1 + scale).flatten(0, 1)
        joined = torch.cat([a, F.gelu(h, approximate="tanh")], dim=-1)
        for how in roundings:
            for name, got, expected in (
                ("norm", norm_modulate(x, shift, scale, how), normal),
                ("GELU", join_gelu(a, h, how), joined),
            ):
                value = got.codes.float() * got.scales if how else got.codes.float()
                results[f"{name}, rounding {how}"] = value, expected.float()
        projected, weight = random(1, 7, 3 * 2 * 16), random(16)
        cos, sin = random(1, 7, 1, 16).float(), random(1, 7, 1, 16).float()
        q, k, _ = norm_rotary([projected], [weight, weight], (cos, sin), 2)
        for name, got, part in (("queries", q, 0), ("keys", k, 1)):
            raw = projected.unflatten(-1, (3, 2, 16))[:, :, part]
            plain = F.rms_norm(raw.float(), (16,), weight.float(), eps=1e-6).bfloat16().float()
            swapped = plain.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
            results[name] = got.float(), plain * cos + swapped * sin
    for name, (got, expected) in results.items():
        off = float((got - expected).norm() / expected.norm())
        if not off < TOLERANCE:
            return f"{name}: {off:.0%} off torch's"
    return ""
