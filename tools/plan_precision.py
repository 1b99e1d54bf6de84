"""Measure what each layer loses in one byte, and write the plan that spends a budget best.

    python -m tools.plan_precision "a red circle on white" --bits 8.5 --out plan.json
    python -m tools.plan_precision ... --transformer flux1-dev.safetensors --clip-l ... --t5 ... --vae ...

Writes the plan and, beside it, a picture of the errors by layer; prints what the plan wins on the
prompts that it was measured with.
"""  # noqa: E501

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch

from flux_core import FluxPipeline, load_text_encoders, load_transformer, load_vae, quantize
from flux_core.calibration.sensitivity import choose_plan, measure_sensitivity
from flux_core.quant import FORMATS
from flux_core.report.pictures import bars, psnr, to_pil


def open_pipeline(args: argparse.Namespace) -> FluxPipeline:
    if args.transformer is None:
        return FluxPipeline.from_pocket(precision="bf16")
    return FluxPipeline(
        load_transformer(args.transformer),
        load_text_encoders(args.clip_l, args.t5),
        load_vae(args.vae),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("output/plan.json"))
    parser.add_argument("--precision", default="int8", choices=list(FORMATS))
    parser.add_argument("--bits", type=float, default=8.5, help="a weight, on average")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--side", type=int, default=256)
    for part in ("--transformer", "--clip-l", "--t5", "--vae"):
        parser.add_argument(part, type=Path)
    args = parser.parse_args()
    pipeline = open_pipeline(args)
    settings = {"width": args.side, "height": args.side, "steps": args.steps}
    drawn: list[torch.Tensor] = []

    def draw() -> None:
        drawn[:] = [pipeline(p, seed=i, **settings).images[0] for i, p in enumerate(args.prompts)]

    measured = measure_sensitivity(pipeline.transformer, draw)
    exact = list(drawn)
    plan = choose_plan(measured, args.precision, args.bits)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(plan.to_json(), encoding="utf-8")
    title = f"relative output error by layer; {len(plan.layers)} layers keep 16 bits"
    chart = args.out.with_suffix(".png")
    to_pil(bars({name: layer.errors for name, layer in measured.items()}, title)).save(chart)
    print(f"{args.out}: {len(plan.layers)} of {len(measured)} layers keep 16 bits; {chart}")
    original = copy.deepcopy(pipeline.transformer)
    for name, precision in (("without a plan", args.precision), ("with the plan", plan)):
        pipeline.transformer = quantize(copy.deepcopy(original), precision)
        draw()
        near = [psnr(a, b) for a, b in zip(drawn, exact, strict=True)]
        print(f"{args.precision} {name}: mean PSNR {sum(near) / len(near):.1f} dB against bf16")


if __name__ == "__main__":
    main()
