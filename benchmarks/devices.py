"""How much faster several devices draw one picture with guidance, and a batch; and the same bits.

    python -m benchmarks.devices                                 # all cards, FLUX.1-dev's full size
    python -m benchmarks.devices --hidden 512 --double 2 --single 4 --side 256   # a CPU as two

Random weights. Times are medians of whole steps, beside those of one device named alone, which
draws pictures one by one as well. On a CPU two devices are two threads of one CPU, each computing
with one core: that says what the threads, copies and waits cost, and nothing of cards.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import torch

from benchmarks.precision import new_transformer
from flux_core import Conditioning, FluxTransformer, OffloadPolicy
from flux_core.offload import OffloadRunner
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw


def names(count: int, kind: str) -> str:
    """The first so many devices of a kind."""
    return ",".join(f"{kind}:{number}" for number in range(count))


def measured(
    request: DrawRequest, policy: OffloadPolicy, kind: str
) -> tuple[float, torch.Tensor, OffloadRunner]:
    """Seconds a step, latents (B, 16, h, w), and the runner with its report."""
    for _ in range(2):  # the first run warms up, pins, brings what stays
        times: list[float] = []

        def note_time(*_: object, times: list[float] = times) -> None:
            if kind == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

        runner = OffloadRunner(policy, torch.device(kind))
        (latents,) = draw(runner, [request], callback=note_time)
    steps = [after - before for before, after in itertools.pairwise(times)]
    return statistics.median(steps), latents, runner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    parser.add_argument("--devices", type=int, default=there or 2, help="at most so many")
    parser.add_argument("--precision", default="fp8_scaled")
    parser.add_argument("--compute", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--double", type=int, default=19)
    parser.add_argument("--single", type=int, default=38)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--text", type=int, default=512)
    args = parser.parse_args()
    args.device = kind = "cuda" if there else "cpu"
    if not there:
        torch.set_num_threads(1)
    model = new_transformer(args, args.precision, args.compute)
    assert isinstance(model, FluxTransformer)
    model.cpu()
    generator = torch.Generator().manual_seed(0)

    def prompt() -> Conditioning:
        context = torch.randn(1, args.text, 4096, generator=generator)
        return Conditioning(context, torch.randn(1, 768, generator=generator))

    ours, theirs = prompt(), prompt()
    for what, batch, cfg in (("guided", 1, 2.0), ("batch", args.devices, 1.0)):
        latents = torch.zeros(batch, 16, args.side // 8, args.side // 8)
        settings = SamplingSettings(steps=args.steps, cfg=cfg)
        request = DrawRequest(model, ours, latents, settings, negative=theirs)
        base, expected = 0.0, torch.empty(0)
        for count in range(1, args.devices + 1):
            if what == "guided" and count > 2:
                break
            separate = True if kind == "cpu" else None
            policy = OffloadPolicy(args.mode, devices=names(count, kind), separate_memory=separate)
            seconds, drawn, runner = measured(request, policy, kind)
            base = base or seconds
            expected = expected if expected.numel() else drawn
            same = "same bits" if torch.equal(drawn, expected) else "OTHER BITS"
            print(
                f"{what} of {batch}, {args.precision}, {count} {kind}: {1e3 * seconds:.0f} ms a "
                f"step, {base / seconds:.2f} times one, {same}",
                flush=True,
            )
        print(runner.report, flush=True)


if __name__ == "__main__":
    main()
