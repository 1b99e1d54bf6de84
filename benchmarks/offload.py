"""Peak memory and time of a step under every offload policy, beside other libraries' offloading.

    python -m benchmarks.offload                                # a card, FLUX.1-dev's full size
    python -m benchmarks.offload --hidden 1024 --double 2 --single 4 --side 512      # a CPU

Random weights. Everything runs in turn in one process; times are ratios to all resident. On a card
the peak is the allocator's, and with ``--picture`` text encoders and VAE of full size run as well.
On a CPU, which stands for a card, the peak is what is counted of tensors, and copies take time
where a card's would not: its ratios say what the ring itself costs.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import statistics
import time
from contextlib import contextmanager
from dataclasses import replace

import torch

from benchmarks.baselines import diffsynth_ways, diffusers_ways
from benchmarks.precision import new_transformer
from flux_core import AutoEncoder, Conditioning, FluxTransformer, OffloadPolicy, quantize
from flux_core.lora import Lora, LoraStack, lora_applied
from flux_core.lora.match import linears_of
from flux_core.models.compile import compile_blocks
from flux_core.models.config import VAEConfig
from flux_core.models.text_encoders import T5Encoder
from flux_core.models.tokenizers import T5_LENGTH
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.placement import placement_of
from flux_core.sampling.estimate import T5_XXL
from flux_core.sampling.prompts import t5_work
from flux_core.sampling.run import DrawRequest, SamplingSettings
from flux_core.sampling.run import draw as draw_latents
from flux_core.sampling.vae import decode_pictures

GB = 1e9


class Meter:
    """Peak of a device over a stretch of work, in bytes above what was there at the first; on a
    CPU above what is there at each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before: int | None = None

    @contextmanager
    def over(self):
        self.peak = 0
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            if self.before is None:
                self.before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            self.peak = torch.cuda.max_memory_allocated(self.device) - self.before
            return
        with LiveBytes() as counted:
            yield
        self.peak = counted.peak


def random_lora(model: FluxTransformer, rank: int) -> Lora:
    """A LoRA of every layer of the blocks but their modulations."""
    layers = {}
    for name, layer in linears_of(model).items():
        if "blocks." in name and "mod" not in name:
            down = torch.randn(rank, layer.in_features)
            up = 0.001 * torch.randn(layer.out_features, rank)
            layers["transformer", name] = {"down": down, "up": up}
    return Lora("random", layers, dict.fromkeys(layers, ()))


def draw(
    model: FluxTransformer,
    policy: OffloadPolicy,
    args: argparse.Namespace,
    meter: Meter,
    loras: LoraStack = (),
) -> tuple[float, int, int]:
    """Seconds a step, peak bytes, predicted bytes."""
    device = meter.device
    side = args.side // 8
    text = Conditioning(torch.randn(1, args.text, 4096), torch.randn(1, 768))
    start = torch.zeros(1, 16, side, side)
    request = DrawRequest(model, text, start, SamplingSettings(steps=args.steps), loras=loras)
    times: list[float] = []

    def note_time(*_) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    runner = OffloadRunner(policy, device)
    with meter.over():
        draw_latents(runner, [request], callback=note_time)
        placement_of(model, runner.device).evict()
    steps = [b - a for a, b in itertools.pairwise(times)]
    part = runner.report.parts["transformer"]
    return statistics.median(steps), meter.peak, part.predicted


def policies(args: argparse.Namespace, whole: float) -> dict[str, OffloadPolicy]:
    """What is compared; budgets are shares of what all resident takes, or gigabytes."""
    policies_by_name = {
        "none": OffloadPolicy("none"),
        "component": OffloadPolicy("component"),
        "stream": OffloadPolicy("stream"),
        "stream, 3 slots": OffloadPolicy("stream", slots=3),
    }
    for budget in args.budgets or [round(whole / 2 / GB, 3)]:
        policies_by_name[f"auto, {budget:g} GB"] = OffloadPolicy(
            "auto", vram_budget=int(budget * GB)
        )
    separate = True if args.device == "cpu" else None  # a CPU stands for a card
    return {
        name: replace(policy, separate_memory=separate) for name, policy in policies_by_name.items()
    }


def ours(args: argparse.Namespace, meter: Meter) -> None:
    for precision in args.precision:
        with_device = argparse.Namespace(**vars(args) | {"device": meter.device.type})
        model = new_transformer(with_device, precision, args.compute)
        assert isinstance(model, FluxTransformer)
        model.cpu()
        if args.compile:
            compile_blocks(model)
        base = 0.0
        lora = random_lora(model, args.lora)
        whole = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        for name, policy in policies(args, whole).items():
            draw(model, policy, args, meter)  # warms up, pins, compiles
            seconds, peak, predicted = draw(model, policy, args, meter)
            base = base or seconds
            row(f"FluxFit {precision}, {name}", seconds, base, peak, predicted)
            if args.lora:
                stack = [(lora, 1.0)]
                draw(model, policy, args, meter, stack)
                times = {(): [], (lora,): []}
                for _ in range(2):  # in turn, so that a busy machine slows both alike
                    for using, policies_by_name in times.items():
                        policies_by_name.append(
                            draw(model, policy, args, meter, stack if using else ())[0]
                        )
                plain, with_lora = (min(policies_by_name) for policies_by_name in times.values())
                started = time.perf_counter()
                with lora_applied(model, [(lora, 0.5)]):
                    changed = time.perf_counter() - started
                print(
                    f"    a LoRA of rank {args.lora}: {with_lora / plain - 1:+.1%} a step; "
                    f"another strength: {changed:.4f} s"
                )
        del model


def row(name: str, seconds: float, base: float, peak: float, predicted: float | None) -> None:
    planned = "" if predicted is None else f"{predicted / GB:.2f}"
    print(
        f"| {name} | {seconds:.3f} | {seconds / base:.2f} | {peak / GB:.2f} | {planned} |",
        flush=True,
    )


def theirs(args: argparse.Namespace, meter: Meter) -> None:
    """Other libraries' transformers of the same size, offloaded in their ways."""
    base = 0.0
    for name, opened in (
        diffusers_ways(args, meter.device) | diffsynth_ways(args, meter.device)
    ).items():
        with meter.over():
            step = opened()
            times = []
            for _ in range(1 + args.steps):
                started = time.perf_counter()
                step()
                torch.cuda.synchronize(meter.device)
                times.append(time.perf_counter() - started)
        # moves between pictures are in the mean alone
        seconds = statistics.mean(times[1:])
        base = base or seconds
        row(name, seconds, base, meter.peak, None)
        del step


def picture(args: argparse.Namespace, meter: Meter) -> None:
    """A whole picture, T5 and VAE of full size with it: peak, and seconds beside the steps."""
    device = meter.device
    with_device = argparse.Namespace(**vars(args) | {"device": device.type})
    precision = args.precision[0]
    transformer = new_transformer(with_device, precision, args.compute)
    assert isinstance(transformer, FluxTransformer)
    transformer.cpu()
    with torch.device("meta"):
        t5, vae = T5Encoder(T5_XXL).bfloat16(), AutoEncoder(VAEConfig()).bfloat16()
    for module in (t5, vae):
        module.to_empty(device=device).requires_grad_(False).eval()
        for p in module.parameters():
            p.normal_(0, 0.02)
    quantize(t5, precision)
    for module in (t5, vae):
        module.cpu()
    side = args.side // 8
    shape = (1, 16, side, side)
    settings = SamplingSettings(steps=args.steps)
    base = 0.0
    for name, policy in policies(args, 12 * GB).items():
        for _ in range(2):  # the first one warms up, pins, compiles
            runner = OffloadRunner(policy, device)
            started = time.perf_counter()
            with meter.over():
                ids = torch.zeros(1, T5_LENGTH, dtype=torch.long, device=device)
                context = runner.run(
                    "text encoders", [t5], lambda _, i=ids: t5(i).cpu(), t5_work(t5, T5_LENGTH)
                )
                text = Conditioning(context, torch.randn(1, 768))
                request = DrawRequest(transformer, text, torch.zeros(shape), settings)
                (latents,) = draw_latents(runner, [request])
                decode_pictures(runner, vae, [latents])
            seconds = time.perf_counter() - started
        for module in (t5, transformer, vae):
            placement_of(module, runner.device).evict()
        base = base or seconds
        predicted = max(part.predicted for part in runner.report.parts.values())
        row(
            f"picture of {args.steps} steps, {precision}, {name}",
            seconds,
            base,
            meter.peak,
            predicted,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", default=["fp8_scaled", "bf16"])
    parser.add_argument("--compute", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--budgets", nargs="*", type=float, default=[], help="of auto, gigabytes")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--double", type=int, default=19)
    parser.add_argument("--single", type=int, default=38)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--text", type=int, default=512)
    parser.add_argument("--lora", type=int, default=0, help="rank: what a LoRA costs as well")
    parser.add_argument("--no-others", action="store_true")
    parser.add_argument("--picture", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    meter = Meter(device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU as a card"
    print(f"{name}, torch {torch.__version__}, {args.side}x{args.side}, medians of {args.steps}")
    print("| what | s a step | times resident | peak, GB | predicted, GB |")
    print("| --- " * 5 + "|")
    with torch.no_grad():
        if args.picture:
            picture(args, meter)
            return
        ours(args, meter)
        if device.type == "cuda" and not args.no_others:
            theirs(args, meter)


if __name__ == "__main__":
    main()
