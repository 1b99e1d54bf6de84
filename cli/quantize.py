"""Write a checkpoint's part at one byte a weight."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .files import named_path, refuse_output
from .outcome import Outcome

if TYPE_CHECKING:
    from flux_core import FluxTransformer, PrecisionPlan

HELP = "write a checkpoint's part at one byte a weight"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--part",
        choices=("transformer", "controlnet", "t5"),
        help="which one, where the file holds several",
    )
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--plan", type=Path, help="a precision plan instead, a JSON file")
    parser.add_argument(
        "--calibrate",
        action="append",
        metavar="PROMPT",
        default=[],
        help="round a transformer for what it reads while it draws this; "
        "several are better (needs --t5, and --clip-l where the model reads it)",
    )
    parser.add_argument("--clip-l", type=Path)
    parser.add_argument("--t5", type=Path)
    parser.add_argument("--side", type=int, default=1024, help="in pixels, of what is drawn")
    parser.add_argument("--steps", type=int, default=4, help="of what is drawn")
    parser.add_argument("--out", type=named_path, required=True)
    parser.add_argument("--overwrite", action="store_true")


def run(args: argparse.Namespace) -> Outcome:
    from flux_core import (
        PrecisionPlan,
        load_controlnet,
        load_t5,
        load_transformer,
        save_module,
    )
    from flux_core.checkpoint.detect import describe, find_parts
    from flux_core.checkpoint.inspect import describe_file
    from flux_core.checkpoint.load import transformer_family
    from flux_core.checkpoint.reader import open_source
    from flux_core.quant.precision import as_plan

    from ..nodes import host

    loaders = {"transformer": load_transformer, "controlnet": load_controlnet, "t5": load_t5}
    refuse_output(args.out, args.overwrite)
    source = open_source(args.file)
    parts = find_parts(source)
    kinds = [part.kind for part in parts if part.kind in loaders]
    if not kinds:
        raise ValueError(
            f"{args.file}: expected a transformer, ControlNet or T5, "
            f"found {describe(source, parts)}"
        )
    precision = PrecisionPlan.load(args.plan) if args.plan else args.precision
    metadata = {k: v for k, v in source.metadata.items() if k.startswith("fluxfit.")}
    kind = args.part or kinds[0]
    wants_clip = (
        args.calibrate and kind == "transformer" and transformer_family(args.file).needs_pooled
    )
    if args.calibrate and (
        kind != "transformer" or args.t5 is None or (wants_clip and args.clip_l is None)
    ):
        raise ValueError("--calibrate is for a transformer, and needs --clip-l and --t5 to draw")
    if args.calibrate:
        precision = as_plan(precision)  # a wrong name is told before anything is drawn
    with host.progress(200, "quantizing") as bar:
        module = loaders[kind](
            args.file,
            precision="bf16" if args.calibrate else precision,
            progress=lambda i, n: bar.update(100 * i // n),
        )
        if args.calibrate:
            module = calibrated(args, module, precision)
        save_module(
            module,
            args.out,
            metadata=metadata,
            progress=lambda i, n: bar.update(100 + 100 * i // n),
        )
    return Outcome(describe_file(args.out), {"files": [args.out], "part": kind})


def calibrated(
    args: argparse.Namespace, transformer: FluxTransformer, plan: PrecisionPlan
) -> FluxTransformer:
    """The transformer quantized for what it reads while it draws some prompts."""
    from flux_core import load_text_encoders, record_second_moments
    from flux_core.calibration.calibrate import calibrated_copy
    from flux_core.models.families import family_of
    from flux_core.offload import OffloadRunner
    from flux_core.sampling.conditioning import Conditioning
    from flux_core.sampling.latents import zero_latents
    from flux_core.sampling.prompts import encode_prompts
    from flux_core.sampling.run import DrawRequest, SamplingSettings, while_drawing
    from flux_core.sampling.sizes import check_size

    from ..nodes import host

    check_size(args.side, args.side)
    runner = OffloadRunner(None, host.device())
    family = family_of(transformer)
    encoders = load_text_encoders(args.clip_l if family.needs_pooled else None, args.t5)
    start = zero_latents(family.vae, 1, args.side, args.side)
    settings = SamplingSettings(steps=args.steps)
    requests = [
        DrawRequest(
            transformer,
            Conditioning(text.context.float(), text.pooled),
            start,
            settings,
        )
        for text in encode_prompts(runner, encoders, args.calibrate)
    ]
    with host.progress(sum(request.steps for request in requests), "drawing to calibrate") as bar:
        second_moments = while_drawing(
            runner,
            requests,
            lambda draw_all: record_second_moments(transformer, draw_all),
            callback=lambda step, total, _: bar.update(step + 1),
        )
    return calibrated_copy(transformer, plan, second_moments, host.device())
