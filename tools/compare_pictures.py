"""What each precision does to pictures: PSNR and SSIM against bf16, same seeds, pocket model.

python -m tools.compare_pictures --count 50
"""

from __future__ import annotations

import argparse
import statistics

from flux_core import FluxPipeline, quantize, set_compute
from flux_core.pictures import psnr, ssim
from flux_core.pipeline import POCKET_SAMPLING
from flux_core.quant import FORMATS
from tools.pocket.score import SIDE, prompts

MOST = 99.0  # dB; pictures that are equal count as this


def pictures(precision: str, compute: str, count: int, settings: dict) -> list:
    """The pictures of ``count`` sentences at a precision of the transformer, the rest in bf16."""
    pipeline = FluxPipeline.from_pocket(precision="bf16")
    if precision in FORMATS:
        set_compute(quantize(pipeline.transformer, precision), compute)
    return [
        pipeline(text, seed=seed, width=SIDE, height=SIDE, **POCKET_SAMPLING | settings).images[0]
        for seed, (text, _) in enumerate(prompts(count, 1))
    ]


def spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.pstdev(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    args = parser.parse_args()
    settings = {"steps": args.steps}
    exact = pictures("bf16", "auto", args.count, settings)
    print("| precision | arithmetic | PSNR, dB | SSIM |\n| --- | --- | --- | --- |")
    for precision in args.only:
        for compute in ("dequantize", "native"):
            drawn = pictures(precision, compute, args.count, settings)
            near = [min(MOST, psnr(a, b)) for a, b in zip(drawn, exact, strict=True)]
            alike = [ssim(a, b) for a, b in zip(drawn, exact, strict=True)]
            print(
                f"| {precision} | {compute} | {spread(near, 1)} | {spread(alike, 4)} |", flush=True
            )


if __name__ == "__main__":
    main()
