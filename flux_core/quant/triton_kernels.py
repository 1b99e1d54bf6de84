"""Triton kernels: one pass over memory where torch's own operations take ten.

Each has a launcher that takes torch tensors; ``fused`` says where they are used and what they
equal. Rows are tokens: a program reads one, keeps it in registers in float32, and writes it once.
Axis letters: B pictures, T tokens, D width, H heads, d width of a head.
"""

# Launches of Triton's functions have no types.
# pyright: reportCallIssue=false, reportArgumentType=false, reportAssignmentType=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rounding import empty_rows


@triton.jit
def _rounded(y, ROUNDING: tl.constexpr):
    """Codes of a row in float32, and its scale; the same arithmetic as ``kernels.to_float8``."""
    limit: tl.constexpr = 448.0 if ROUNDING == 1 else 127.0
    scale = tl.maximum(tl.max(tl.abs(y), 0), 1e-12) / limit
    codes = tl.math.div_rn(y, scale + tl.zeros_like(y))
    if ROUNDING == 2:
        codes = (codes + 12582912.0) - 12582912.0  # to the nearest whole number, halves to even
    return tl.minimum(tl.maximum(codes, -limit), limit), scale


@triton.jit
def _norm_modulate_kernel(
    x, shift, scale, out, token_scale, tokens, x_b, x_t, m_b, m_t,
    D: tl.constexpr, BLOCK: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, t = row // tokens, row % tokens
    i = tl.arange(0, BLOCK)
    inside = i < D
    value = tl.load(x + b * x_b + t * x_t + i, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, 0) / D
    off = tl.where(inside, value - mean, 0.0)
    normal = off * tl.rsqrt(tl.sum(off * off, 0) / D + 1e-6)
    at = b * m_b + t * m_t + i
    factor = 1.0 + tl.load(scale + at, mask=inside, other=0.0).to(tl.float32)
    y = normal * factor + tl.load(shift + at, mask=inside, other=0.0).to(tl.float32)
    y = tl.where(inside, y, 0.0).to(x.dtype.element_ty)
    if ROUNDING:
        y, largest = _rounded(y.to(tl.float32), ROUNDING)
        tl.store(token_scale + row, largest)
    tl.store(out + row * D + i, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _join_gelu_kernel(
    a, h, out, token_scale, a_row, h_row,
    A: tl.constexpr, H: tl.constexpr, BLOCK: tl.constexpr, ROUNDING: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    y = tl.zeros((BLOCK,), tl.float32)
    if A:
        y = tl.load(a + row * a_row + i, mask=i < A, other=0.0).to(tl.float32)
    if H:
        behind = (i >= A) & (i < A + H)
        v = tl.load(h + row * h_row + (i - A), mask=behind, other=0.0).to(tl.float32)
        gelu = v * tl.sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
        y = tl.where(behind, gelu, y).to(h.dtype.element_ty).to(tl.float32)
    if ROUNDING:
        y, largest = _rounded(y, ROUNDING)
        tl.store(token_scale + row, largest)
    tl.store(out + row * (A + H) + i, y.to(out.dtype.element_ty), mask=i < A + H)


@triton.jit
def _norm_rotary_kernel(
    qkv, query, key, cos, sin, q, k, v, tokens, all_tokens, start, x_b, x_t, r_b,
    H: tl.constexpr, HEADS: tl.constexpr, d: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    b, t = row // tokens, row % tokens
    heads = tl.arange(0, HEADS)[:, None]
    place = heads * d + tl.arange(0, d)[None, :]
    inside = (heads < H) & (place >= 0)
    source = qkv + b * x_b + t * x_t + part * (H * d)
    raw = tl.load(source + place, mask=inside, other=0.0)
    to = (b * all_tokens + start + t) * (H * d)
    if part == 2:
        tl.store(v + to + place, raw, mask=inside)
    else:
        i = tl.arange(0, d)
        weight = tl.load(query + i if part == 0 else key + i).to(tl.float32)
        value = raw.to(tl.float32)
        mean = tl.sum(value * value, 1) / d
        value = value * tl.rsqrt(mean + 1e-6)[:, None] * weight[None, :]
        value = value.to(raw.dtype).to(tl.float32)
        even, odd = tl.split(tl.reshape(value, (HEADS, d // 2, 2)))
        at = b * r_b + (start + t) * d + i
        cos_even, cos_odd = tl.split(tl.reshape(tl.load(cos + at), (d // 2, 2)))
        sin_even, sin_odd = tl.split(tl.reshape(tl.load(sin + at), (d // 2, 2)))
        turned = tl.join(
            even * cos_even[None, :] + odd * sin_even[None, :],
            odd * cos_odd[None, :] + even * sin_odd[None, :],
        )
        turned = tl.reshape(turned, (HEADS, d)).to(raw.dtype)
        target = q if part == 0 else k
        tl.store(target + to + place, turned, mask=inside)


@triton.jit
def _int8_product_kernel(
    a, codes, token_scale, row_scale, bias, out, M, N,
    K: tl.constexpr, BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share inputs: so many rows of tiles, then the next column.
    program = tl.program_id(0)
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    group = program // (GROUP * columns)
    high = min(rows - group * GROUP, GROUP)
    m = group * GROUP + (program % (GROUP * columns)) % high
    n = (program % (GROUP * columns)) // high
    i, j = m * BM + tl.arange(0, BM), n * BN + tl.arange(0, BN)
    deep = tl.arange(0, BK)
    a_at = a + (i % M).to(tl.int64)[:, None] * K + deep[None, :]
    b_at = codes + (j % N).to(tl.int64)[None, :] * K + deep[:, None]
    total = tl.zeros((BM, BN), tl.int32)
    for _ in range(0, K // BK):
        total = tl.dot(tl.load(a_at), tl.load(b_at), total, out_dtype=tl.int32)
        a_at += BK
        b_at += BK
    y = total.to(tl.float32)
    y = y * tl.load(token_scale + i, mask=i < M, other=0.0)[:, None]
    y = y * tl.load(row_scale + j, mask=j < N, other=0.0)[None, :]
    if BIAS:
        y += tl.load(bias + j, mask=j < N, other=0.0).to(tl.float32)[None, :]
    to = out + i.to(tl.int64)[:, None] * N + j[None, :]
    tl.store(to, y.to(out.dtype.element_ty), mask=(i < M)[:, None] & (j < N)[None, :])


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))


def launch_norm_modulate(
    x: Tensor, shift: Tensor, scale: Tensor, rounding: int
) -> tuple[Tensor, Tensor]:
    """Layer norm of x (B, T, D) times 1 + scale, plus shift, each (B, 1 or T, D): (B T, D), and
    token scales (B T, 1) where it is rounded."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    if shift.stride() != scale.stride() or shift.stride(-1) != 1:
        shift, scale = shift.contiguous(), scale.contiguous()
    batch, tokens, width = x.shape
    out, scales = empty_rows(x, batch * tokens, width, rounding)
    block = triton.next_power_of_2(width)
    m_b = shift.stride(0) if shift.shape[0] > 1 else 0
    m_t = shift.stride(1) if shift.shape[1] > 1 else 0
    _norm_modulate_kernel[(batch * tokens,)](
        x, shift, scale, out, scales, tokens, x.stride(0), x.stride(1), m_b, m_t,
        D=width, BLOCK=block, ROUNDING=rounding, num_warps=_warps(block),
    )  # fmt: skip
    return out, scales


def launch_join_gelu(a: Tensor | None, h: Tensor | None, rounding: int) -> tuple[Tensor, Tensor]:
    """a (rows, A) beside the GELU of h (rows, H): (rows, A + H), and token scales (rows, 1) where
    it is rounded. Either may be left out."""
    first = a if a is not None else h
    assert first is not None
    rows, wide_a, wide_h = (
        len(first),
        0 if a is None else a.shape[1],
        0 if h is None else h.shape[1],
    )
    out, scales = empty_rows(first, rows, wide_a + wide_h, rounding)
    block = triton.next_power_of_2(wide_a + wide_h)
    a, h = (first if part is None else part for part in (a, h))
    _join_gelu_kernel[(rows,)](
        a, h, out, scales, a.stride(0), h.stride(0),
        A=wide_a, H=wide_h, BLOCK=block, ROUNDING=rounding, num_warps=_warps(block),
    )  # fmt: skip
    return out, scales


def launch_norm_rotary(
    projected: list[Tensor], scales: list[Tensor], cos: Tensor, sin: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Streams (B, T, 3 H d) with scales (d,) of their queries and keys, in turn, to normalised and
    rotated queries and keys of all their tokens, (B, L, H, d), and their values.

    Of one stream alone the values are left out, since they lie in it already.
    """
    first = projected[0]
    batch, width = first.shape[0], first.shape[2] // 3
    total, d = sum(part.shape[1] for part in projected), width // heads
    alone = len(projected) == 1
    q, k = (first.new_empty(batch, total, heads, d) for _ in range(2))
    v = first.new_empty((0,) if alone else q.shape)
    turn = cos.stride(0) if cos.shape[0] > 1 else 0
    start = 0
    for i, part in enumerate(projected):
        part = part if part.stride(-1) == 1 else part.contiguous()
        _norm_rotary_kernel[(batch * part.shape[1], 2 if alone else 3)](
            part, scales[2 * i], scales[2 * i + 1], cos, sin, q, k, v,
            part.shape[1], total, start, part.stride(0), part.stride(1), turn,
            H=heads, HEADS=triton.next_power_of_2(heads), d=d, num_warps=4,
        )  # fmt: skip
        start += part.shape[1]
    return q, k, v


def launch_int8_product(
    a: Tensor, codes: Tensor, tokens: Tensor, rows: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """a (M, K) times codes (N, K), both int8, scaled by ``tokens`` (M, 1) and ``rows`` (N values),
    and a bias (N,): (M, N) in ``dtype``. K is a multiple of 64."""
    (m, k), n = a.shape, len(codes)
    out = a.new_empty(m, n, dtype=dtype)
    wide = a.is_cuda and torch.cuda.get_device_capability(a.device) in ((9, 0), (10, 0), (10, 3))
    if m <= 64:
        sizes = {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 4}
    elif wide and m > 1024 and n > 4096:
        sizes = {"BM": 128, "BN": 256, "num_warps": 8, "num_stages": 3}
    else:
        sizes = {"BM": 128, "BN": 128, "num_warps": 8 if wide else 4, "num_stages": 4}
    deep = 128 if wide and not k % 128 else 64
    grid = (triton.cdiv(m, sizes["BM"]) * triton.cdiv(n, sizes["BN"]),)
    _int8_product_kernel[grid](
        a.contiguous(), codes, tokens, rows, rows if bias is None else bias, out, m, n,
        K=k, BIAS=bias is not None, BK=deep, GROUP=8, **sizes,
    )  # fmt: skip
    return out
