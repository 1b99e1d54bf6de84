"""Time every format and arithmetic against bf16, on FLUX.1's own layers and on a whole step.

    python -m benchmarks.precision layers [--tokens 4608] [--compile]
    python -m benchmarks.precision step [--double 19 --single 38] [--compile] [--profile]

Everything is timed in turn in one process, so that a busy machine slows all alike; figures are
ratios of medians to bf16 (above 1: faster than bf16), with iterations a second for whole steps.
``step`` at full size needs 24 GB for bf16; ``--only`` and ``--computes`` leave some out. Compiled
steps have their blocks compiled, as FluxFit's ``compile`` does it. ``--profile`` says which kernels
a step's time goes to.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flux_core import FluxTransformer, compile_blocks, kernels_used, quantize, set_compute
from flux_core.models.config import TransformerConfig
from flux_core.quant import FORMATS, QuantizedLinear
from flux_core.quant.apply import module_bytes
from flux_core.quant.hadamard import rotate
from flux_core.sampling.latents import image_ids, text_ids

#: in and out features of the blocks' layers, FLUX.1 at its own size.
LAYERS = {
    "attn.qkv": (3072, 9216),
    "attn.proj": (3072, 3072),
    "mlp.0": (3072, 12288),
    "mlp.2": (12288, 3072),
    "linear1": (3072, 21504),
    "linear2": (15360, 3072),
}
Calls = dict[str, Callable[[], Tensor]]


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def medians(calls: Calls, runs: int, device: str) -> dict[str, float]:
    """Median seconds of each call, all called in turn, after two calls to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for run in range(runs + 2):
        for name in list(calls)[:: 1 if run % 2 else -1]:
            wait(device)
            start = time.perf_counter()
            calls[name]()
            wait(device)
            if run > 1:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def variants(args: argparse.Namespace) -> list[tuple[str, str]]:
    return [(f, c) for f in FORMATS for c in args.computes if not args.only or f in args.only]


def maybe_compiled(module: nn.Module, wanted: bool) -> nn.Module:
    return torch.compile(module, dynamic=False) if wanted else module  # type: ignore[return-value]


def bench_layers(args: argparse.Namespace) -> None:
    print(f"| layer | {' | '.join(f'{f}, {c}' for f, c in variants(args))} | rotation |")
    print("| --- " * (len(variants(args)) + 2) + "|")
    sums: dict[str, float] = {}
    torch._dynamo.config.recompile_limit = 4 * len(LAYERS) * len(variants(args))
    for name, (wide, out) in LAYERS.items():
        linear = nn.Linear(wide, out, dtype=torch.bfloat16).requires_grad_(False)
        linear.weight.normal_(0, 0.02)
        linear.to(args.device)
        x = torch.randn(args.tokens, wide, dtype=torch.bfloat16, device=args.device)
        modules: dict[str, nn.Module] = {"bf16": linear}
        for precision, compute in variants(args):
            layer = QuantizedLinear.from_linear(linear, FORMATS[precision])
            layer.set_compute(compute)
            layer(x[:32])  # finds its arithmetic
            modules[f"{precision}, {compute}"] = layer
        ready = {key: maybe_compiled(m, args.compile) for key, m in modules.items()}
        calls: Calls = {key: (lambda m=m, x=x: m(x)) for key, m in ready.items()}  # type: ignore
        calls["rotation"] = lambda x=x: rotate(x, 256)
        seconds_by_name = medians(calls, args.runs, args.device)
        for key, seconds in seconds_by_name.items():
            sums[key] = sums.get(key, 0.0) + seconds
        print_row(name, seconds_by_name)
    print_row("all", sums)


def print_row(name: str, seconds_by_name: dict[str, float]) -> None:
    base = seconds_by_name["bf16"]
    cells = [
        f"{base / s:.2f}" for key, s in seconds_by_name.items() if key not in ("bf16", "rotation")
    ]
    print(
        f"| {name} | {' | '.join(cells)} | {seconds_by_name['rotation'] / base:.1%} |", flush=True
    )


def step_inputs(device: str, side: int, text: int) -> dict[str, Tensor]:
    """A step at side x side pixels with bf16 activations."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=device)

    return {
        "img": random(1, side * side // 256, 64),
        "txt": random(1, text, 4096),
        "y": random(1, 768),
        "timesteps": torch.tensor([0.6], device=device),
        "guidance": torch.tensor([3.5], device=device),
        "img_ids": image_ids(side // 8, side // 8).to(device),
        "txt_ids": text_ids(text).to(device),
    }


def new_transformer(args: argparse.Namespace, precision: str, compute: str) -> nn.Module:
    """Random weights at a precision, made block by block so that no 16-bit model is needed."""
    config = TransformerConfig(
        hidden_size=args.hidden,
        depth=args.double,
        depth_single_blocks=args.single,
        guidance_embed=True,
    )
    with torch.device("meta"):
        model = FluxTransformer(config).requires_grad_(False)
    for part in [m for m in model.modules() if next(m.children(), None) is None]:
        part.to(torch.bfloat16).to_empty(device=args.device)
        for name, p in part.named_parameters():
            if name == "weight":
                p.normal_(0, 0.02)
            else:
                p.fill_(1.0 if name == "scale" else 0.0)
    for block in [*model.double_blocks, *model.single_blocks]:
        quantize(block, precision)
    return set_compute(model, compute).eval()


def bench_step(args: argparse.Namespace) -> None:
    inputs = step_inputs(args.device, args.side, args.text)
    base = 0.0
    print("| format | arithmetic | it/s | times bf16 | weights, GB | peak, GB |")
    print("| --- " * 6 + "|")
    for precision, compute in [("bf16", "auto"), *variants(args)]:
        model = new_transformer(args, precision, compute)
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        model(**inputs)  # finds its arithmetic
        kernel_choices = kernels_used(model)
        if args.compile:
            compile_blocks(model)
        seconds = medians({"step": lambda m=model: m(**inputs)}, args.runs, args.device)["step"]
        if args.compile:
            refuse_recompiling(model, inputs)
        base = base or seconds
        size = module_bytes(model)
        peak = torch.cuda.max_memory_allocated() / 1e9 if args.device == "cuda" else float("nan")
        print(
            f"| {precision} | {compute} | {1 / seconds:.2f} | {base / seconds:.2f} | "
            f"{size / 1e9:.2f} | {peak:.2f} |",
            flush=True,
        )
        for way, count in kernel_choices.items():
            print(f"    {count} layers {way}")
        if args.profile:
            print_profile(model, inputs, args.device)
        del model
        torch._dynamo.reset()
        if args.device == "cuda":
            torch.cuda.empty_cache()


def print_profile(model: nn.Module, inputs: dict[str, Tensor], device: str) -> None:
    """The kernels that take most of a step, in milliseconds, with how often each ran."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds[device == "cuda" :]) as profiler:
        model(**inputs)
        wait(device)
    sums: dict[str, tuple[float, int]] = {}
    for event in profiler.key_averages():
        spent = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
        sums[event.key] = spent / 1000, event.count
    whole = sum(spent for spent, _ in sums.values())
    print(f"    kernels: {sum(c for s, c in sums.values() if s)}, together {whole:.1f} ms")
    for key, (spent, count) in sorted(sums.items(), key=lambda item: -item[1][0])[:14]:
        print(f"    {spent:8.2f} ms {count:5} x {key[:100]}", flush=True)


def refuse_recompiling(ready: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Raise where another step, prompt or guidance compiles anything again."""
    with torch.compiler.set_stance("fail_on_recompile"):
        for share in (0.3, 0.9):
            ready(**inputs | {"timesteps": inputs["timesteps"] * share})
            ready(**inputs | {"txt": inputs["txt"] * share, "y": inputs["y"] * share})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("layers", "step"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true", help="of a step")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--computes", nargs="+", default=["dequantize", "native"])
    parser.add_argument("--only", nargs="*", default=[], choices=list(FORMATS))
    parser.add_argument("--tokens", type=int, default=4608, help="of layers")
    parser.add_argument("--hidden", type=int, default=3072, help="of a step, with the next four")
    parser.add_argument("--double", type=int, default=19)
    parser.add_argument("--single", type=int, default=38)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--text", type=int, default=512)
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    how = "compiled" if args.compile else "eager"
    print(f"{device}, torch {torch.__version__}, {how}, medians of {args.runs}")
    with torch.inference_mode():
        (bench_layers if args.what == "layers" else bench_step)(args)


if __name__ == "__main__":
    main()
