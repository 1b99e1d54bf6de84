"""What each precision does to pictures: PSNR and SSIM against bf16, same seeds, pocket model.

    python -m benchmarks.pictures --count 50

Weights rounded to the nearest code, and calibrated: on sentences of scenes that are not among those
that are drawn.
"""

from __future__ import annotations

import argparse
import random
import statistics

from torch import Tensor

from flux_core import FluxPipeline, quantize, record_second_moments, set_compute
from flux_core.pocket import POCKET_SAMPLING
from flux_core.quant import COMPUTES, FORMATS
from flux_core.report.pictures import psnr, ssim
from tools.pocket.captions import describe
from tools.pocket.scenes import random_scene
from tools.pocket.score import SIDE, prompts

MOST = 99.0  # dB; pictures that are equal count as this
#: Sentences that are drawn to calibrate, and steps of each.
SEEN, SEEN_STEPS = 8, 10


def drawn(pipeline: FluxPipeline, sentences: list[str], first: int, steps: int) -> list[Tensor]:
    """A picture of each sentence, seeds from ``first`` on."""
    settings = POCKET_SAMPLING | {"steps": steps}
    return [
        pipeline(text, seed=first + i, width=SIDE, height=SIDE, **settings).images[0]
        for i, text in enumerate(sentences)
    ]


def second_moments() -> dict[str, Tensor]:
    """What the layers read while scenes of the training are drawn."""
    rng = random.Random("calibration")
    sentences = [describe(random_scene(rng, 1, held_out=False), rng).text for _ in range(SEEN)]
    pipeline = FluxPipeline.from_pocket(precision="bf16")
    return record_second_moments(
        pipeline.transformer, lambda: drawn(pipeline, sentences, 1000, SEEN_STEPS)
    )


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.pstdev(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--compute", nargs="*", default=["dequantize", "native"], choices=COMPUTES)
    args = parser.parse_args()
    sentences = [text for text, _ in prompts(args.count, 1)]
    exact = drawn(FluxPipeline.from_pocket(precision="bf16"), sentences, 0, args.steps)
    kernel_choices = {"nearest": {}, "calibrated": second_moments()}
    print("| precision | rounding | arithmetic | PSNR, dB | SSIM |\n" + "| --- " * 5 + "|")
    for precision in args.only:
        for rounding, known in kernel_choices.items():
            for compute in args.compute:
                pipeline = FluxPipeline.from_pocket(precision="bf16")
                set_compute(quantize(pipeline.transformer, precision, known), compute)
                drawings = drawn(pipeline, sentences, 0, args.steps)
                near = [min(MOST, psnr(a, b)) for a, b in zip(drawings, exact, strict=True)]
                alike = [ssim(a, b) for a, b in zip(drawings, exact, strict=True)]
                print(
                    f"| {precision} | {rounding} | {compute} | {spread(near, 1)} | "
                    f"{spread(alike, 4)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
