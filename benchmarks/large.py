"""A large picture from the pocket upscaler, in tiles: memory against the plan, and seams.

    python -m benchmarks.large --side 4096

The CPU stands for a card with memory of its own: bytes of tensors that are alive are counted while
the latents are drawn, under a budget that the whole picture at once is far above. Minutes at 1024,
much longer at 4096.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from PIL import Image

from flux_core import Control, FluxPipeline, OffloadPolicy, load_controlnet
from flux_core.files import writing
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.plan import Plan
from flux_core.pocket import POCKET_SAMPLING, pocket_file
from flux_core.report.seams import seam_ratio
from flux_core.sampling.conditioning import Conditioning
from flux_core.sampling.images import to_pixels
from flux_core.sampling.prompts import encode_prompts
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from flux_core.sampling.stitch import resized
from flux_core.sampling.tiles import Tiling
from flux_core.sampling.vae import decode_pictures, encode_pixels
from flux_core.units import readable_bytes, readable_seconds

TEXT = "a red circle on a blue background"
SMALL = 256


def large_request(
    pipeline: FluxPipeline, runner: OffloadRunner, args: argparse.Namespace
) -> DrawRequest:
    """The pocket model's picture, enlarged, for its upscaler to draw anew."""
    small = pipeline(TEXT, width=SMALL, height=SMALL, seed=1, **POCKET_SAMPLING).images
    pixels = to_pixels(resized(small, args.side, args.side))
    latents = encode_pixels(runner, pipeline.vae, pixels)
    (encoding,) = encode_prompts(runner, pipeline.text_encoders, [TEXT])
    net = load_controlnet(pocket_file("controlnet", "_upscaler"))
    return DrawRequest(
        pipeline.transformer,
        Conditioning(encoding.context, encoding.pooled),
        latents,
        SamplingSettings(seed=1, steps=args.steps, denoise=0.4, shift="diffsynth"),
        controls=[Control(net, latents, 0.8)],
        tiles=Tiling(SMALL, args.overlap),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--budget", type=float, default=0.5, help="gigabytes")
    parser.add_argument("--out", type=Path, help="where the picture is written")
    args = parser.parse_args()
    budget = int(args.budget * 1e9)
    policy = OffloadPolicy("component", vram_budget=budget, separate_memory=True)
    pipeline = FluxPipeline.from_pocket(policy=policy, device="cpu")
    runner = OffloadRunner(policy, "cpu")
    request = large_request(pipeline, runner, args)
    assert request.tiles is not None
    plans: list[Plan] = []

    def drawn(plan: Plan) -> torch.Tensor:
        plans.append(plan)
        return sample(request)

    noise, work = request.noise_schedule.noise, request.work
    begun = time.perf_counter()
    with LiveBytes() as counted:
        latents = runner.run("transformer", request.modules, drawn, work)
    seconds = time.perf_counter() - begun
    # a card has a copy of the noise; the whole conditions wait on the host
    conditions = len(request.controls) * request.latents.nbytes
    peak = counted.peak + noise.nbytes - conditions
    plan, whole = plans[-1], request.latents.shape
    windows = len(request.tiles.windows(*whole[-2:]))
    print(f"{args.side}x{args.side}, {windows} windows a step, {args.steps} steps")
    held = f"{readable_bytes(peak)} of {readable_bytes(budget)}"
    planned = f"planned {readable_bytes(plan.peak)} ({peak / plan.peak - 1:+.1%})"
    print(f"latents: {held}, {planned}, {readable_seconds(seconds)}", flush=True)
    (images,) = decode_pictures(runner, pipeline.vae, [latents])
    print(f"decoded in tiles of {8 * (runner.report.parts['VAE decoder'].tile or 0)} pixels")
    rows, columns = request.tiles.seams(*whole[-2:])
    print(f"seams: {seam_ratio(images, rows, columns):.2f} of what is nearby")
    if args.out is not None:
        with writing(args.out) as path:
            Image.fromarray((images[0] * 255).byte().numpy()).save(path, format="PNG")


if __name__ == "__main__":
    main()
