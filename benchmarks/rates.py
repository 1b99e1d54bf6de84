"""What a card's parts reach: products and attention in TFLOP/s, memory and the link to it in GB/s.

    python -m benchmarks.rates [--tokens 4608]

Shapes are FLUX.1's at 1024x1024, numbers are random, times are medians by the device's own events.
What the card or its torch cannot do is a line with the reason.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.precision import LAYERS


def seconds(call: Callable[[], object], runs: int = 15) -> float:
    """Median of a call on the card, in seconds, after three to warm up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def row(name: str, work: float, unit: str, call: Callable[[], object]) -> None:
    """Print ``work`` per second of a call, in millions of millions or thousands of millions."""
    try:
        value = work / seconds(call) / (1e12 if unit == "TFLOP/s" else 1e9)
        print(f"| {name} | {value:.0f} {unit} |", flush=True)
    except Exception as error:  # whatever it is, it is what the card says
        print(f"| {name} | {str(error).strip().splitlines()[0][:100]} |", flush=True)


def products(tokens: int) -> None:
    for name, (wide, out) in LAYERS.items():
        x = torch.randn(tokens, wide, device="cuda", dtype=torch.bfloat16)
        weight = torch.randn(out, wide, device="cuda", dtype=torch.bfloat16)
        bias = torch.randn(out, device="cuda", dtype=torch.bfloat16)
        x8, w8 = x.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
        xi, wi = (10 * x).to(torch.int8), (10 * weight).to(torch.int8)
        by_token, by_row = torch.rand(tokens, 1).cuda(), torch.rand(1, out).cuda()
        one = torch.ones((), device="cuda")

        def scaled(a=x8, b=w8, sa=by_token, sb=by_row, fast=True, bias=None):
            return torch._scaled_mm(
                a, b.t(), sa, sb, bias, out_dtype=torch.bfloat16, use_fast_accum=fast
            )

        work = 2.0 * tokens * wide * out
        row(
            f"{name} bf16 with bias",
            work,
            "TFLOP/s",
            lambda x=x, w=weight, b=bias: F.linear(x, w, b),
        )
        row(f"{name} float8 by row", work, "TFLOP/s", scaled)
        row(f"{name} float8 by row with bias", work, "TFLOP/s", lambda b=bias, s=scaled: s(bias=b))
        row(f"{name} float8 by row, exact sums", work, "TFLOP/s", lambda s=scaled: s(fast=False))
        row(f"{name} float8 one scale", work, "TFLOP/s", lambda s=scaled, o=one: s(sa=o, sb=o))
        row(f"{name} int8", work, "TFLOP/s", lambda a=xi, b=wi: torch._int_mm(a, b.t()))


def attention(tokens: int) -> None:
    q, k, v = (
        torch.randn(1, 24, tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    work = 4.0 * tokens**2 * 24 * 128
    row(
        "attention, chosen by torch",
        work,
        "TFLOP/s",
        lambda: F.scaled_dot_product_attention(q, k, v),
    )
    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
    ):
        with sdpa_kernel(backend):
            row(
                f"attention, {backend.name}",
                work,
                "TFLOP/s",
                lambda: F.scaled_dot_product_attention(q, k, v),
            )


def memory() -> None:
    size = 2 * 10**9
    a, b = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    row("memory, read and written", 2 * size, "GB/s", lambda: a.copy_(b))
    for pinned in (True, False):
        host = torch.empty(size // 4, dtype=torch.uint8, pin_memory=pinned)
        name = "link, pinned" if pinned else "link, pageable"
        row(name, size // 4, "GB/s", lambda h=host: a[: size // 4].copy_(h, non_blocking=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=4608)
    args = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.tokens} tokens")
    print("| what | reached |\n| --- | --- |")
    with torch.inference_mode():
        memory()
        attention(args.tokens)
        products(args.tokens)


if __name__ == "__main__":
    main()
