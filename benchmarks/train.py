"""Peak memory and time of a training step, by precision and policy, with bf16 beside one byte.

    python -m benchmarks.train                                  # a card, FLUX.1-dev's full size
    python -m benchmarks.train --hidden 1024 --double 2 --single 4 --side 256      # a CPU
    python -m benchmarks.train --plan                           # full size, computed on no card

Random weights, a LoRA of rank 16 on attention and MLPs, AdamW. Everything runs in turn in one
process. On a card the peak is the allocator's; on a CPU, which stands for a card, it is what is
counted of tensors. ``--plan`` computes the same peaks beforehand, for a card that is not there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

from benchmarks.offload import GB, Meter
from benchmarks.precision import new_transformer
from flux_core import FluxTransformer, OffloadPolicy, quantize
from flux_core.lora.trained import TrainedLora
from flux_core.models.config import TransformerConfig
from flux_core.models.text_encoders import TextEncoding
from flux_core.offload import OffloadRunner, Work
from flux_core.offload.placement import placement_of
from flux_core.offload.workload import training_work
from flux_core.train.batch import Batch
from flux_core.train.config import ObjectiveConfig, OptimizerConfig
from flux_core.train.learner import TENSORS_A_PARAMETER
from flux_core.train.objective import batch_loss
from flux_core.train.optim import make_optimizer

TARGETS = ("attention", "mlp")


def policies(args: argparse.Namespace) -> dict[str, OffloadPolicy]:
    """What is compared; the budgets are those of common cards."""
    compared = {"none": OffloadPolicy("none"), "component": OffloadPolicy("component")}
    for budget in args.budgets:
        compared[f"auto, {budget:g} GB"] = OffloadPolicy("auto", vram_budget=int(budget * GB))
    separate = True if args.device == "cpu" else None  # a CPU stands for a card
    policies = compared | {"stream": OffloadPolicy("stream")}
    return {name: replace(policy, separate_memory=separate) for name, policy in policies.items()}


def work_of(model: FluxTransformer, lora: TrainedLora, side: int, args: argparse.Namespace) -> Work:
    kept = TENSORS_A_PARAMETER * sum(p.nbytes for p in lora.parameters())
    return training_work(
        model,
        image_tokens=side * side // 256,
        text_tokens=args.text,
        batch=args.batch,
        on_host=args.activations_on_host,
        kept=kept,
    )


def train(
    model: FluxTransformer,
    policy: OffloadPolicy,
    side: int,
    args: argparse.Namespace,
    meter: Meter,
) -> tuple[float, int, int]:
    """Seconds a step, peak bytes, predicted bytes."""
    device = meter.device
    shape = (args.batch, 16, side // 8, side // 8)
    clean, noise = torch.randn(shape), torch.randn(shape)
    text = TextEncoding(torch.randn(args.batch, args.text, 4096), torch.randn(args.batch, 768))
    runner = OffloadRunner(policy, device)
    times: list[float] = []
    lora = TrainedLora(model, TARGETS, args.rank, args.rank)
    with lora.on(model):
        work = work_of(model, lora, side, args)  # computed on meta, which is not to be counted
    with meter.over():
        lora.to(device)
        optimizer = make_optimizer(OptimizerConfig(), list(lora.parameters()))
        levels, weights = torch.full((args.batch,), 0.5), torch.ones(args.batch)
        batch = Batch(clean, text, noise, levels, weights).to(device)
        with lora.on(model), runner.hold("training", model, work=work):
            for _ in range(args.steps + 1):
                started = time.perf_counter()
                batch_loss(model, batch, ObjectiveConfig()).mean().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - started)
        placement_of(model, runner.device).evict()
    part = runner.report.parts["training"]
    return statistics.median(times[1:]), meter.peak, part.predicted


def measured(args: argparse.Namespace) -> None:
    meter = Meter(torch.device(args.device))
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU as a card"
    print(f"{name}, torch {torch.__version__}, rank {args.rank}, medians of {args.steps} steps")
    print("| what | s a step | times the first | peak, GB | predicted, GB |")
    print("| --- " * 5 + "|")
    base: dict[int, float] = {}
    for precision in args.precision:
        model = new_transformer(args, precision, "auto")
        assert isinstance(model, FluxTransformer)
        model.cpu()
        for side in args.side:
            for label, policy in policies(args).items():
                try:
                    seconds, peak, predicted = train(model, policy, side, args, meter)
                except torch.OutOfMemoryError:
                    print(f"| {precision}, {side}, {label} | out of memory | | | |", flush=True)
                    continue
                ratio = seconds / base.setdefault(side, seconds)
                print(
                    f"| {precision}, {side}, {label} | {seconds:.3f} | {ratio:.2f} | "
                    f"{peak / GB:.2f} | {predicted / GB:.2f} |",
                    flush=True,
                )
        del model


def planned(args: argparse.Namespace) -> None:
    """Peaks of FLUX.1-dev's full size, from shapes alone."""
    print("| precision, side, policy | plan |")
    print("| --- | --- |")
    for precision in args.precision:
        with torch.device("meta"):
            model = FluxTransformer(TransformerConfig()).bfloat16()
        if precision != "bf16":
            quantize(model, precision)
        lora = TrainedLora(model, TARGETS, args.rank, args.rank)
        with lora.on(model):
            for side in args.side:
                work = work_of(model, lora, side, args)
                for label, policy in policies(args).items():
                    plan = OffloadRunner(policy, "cpu").plan([model], work)
                    print(f"| {precision}, {side}, {label} | {plan} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", default=["bf16", "fp8_scaled"])
    parser.add_argument("--budgets", nargs="*", type=float, default=[12, 8], help="gigabytes")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--double", type=int, default=19)
    parser.add_argument("--single", type=int, default=38)
    parser.add_argument("--side", nargs="+", type=int, default=[512, 1024])
    parser.add_argument("--text", type=int, default=512)
    parser.add_argument("--activations-on-host", action="store_true")
    parser.add_argument("--plan", action="store_true")
    args = parser.parse_args()
    if args.plan:
        planned(args)
    else:
        measured(args)


if __name__ == "__main__":
    main()
