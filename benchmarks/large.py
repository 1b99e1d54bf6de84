"""A large picture from the pocket upscaler, in tiles: memory against the plan, and seams.

    python -m benchmarks.large --side 4096 --steps 1 --budget 1 --keep FOLDER --out large.png

The CPU stands for a card with memory of its own: bytes of tensors that are alive are counted while
the latents are drawn, under a budget that the whole picture at once is far above. Minutes at 1024,
much longer at 4096: with ``--keep`` latents lie in a folder, and who was interrupted goes on behind
them. ``resident`` is the memory of the whole process, with torch and the libraries.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

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


def kept(
    args: argparse.Namespace, name: str, make: Callable[[], tuple[torch.Tensor, str]]
) -> torch.Tensor:
    """Latents of an earlier run with these numbers, or made and kept now; what there is to say of
    them is printed either way."""
    numbers = f"{args.side}_{args.steps}_{args.overlap}_{args.budget}"
    path = None if args.keep is None else args.keep / f"{name}_{numbers}.safetensors"
    if path is not None and path.exists():
        with safe_open(path, "pt") as file:
            print(file.metadata()["about"], flush=True)
            return file.get_tensor("latents")
    latents, about = make()
    print(about, flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as part:
            save_file({"latents": latents.contiguous()}, part, {"about": about})
    return latents


def resident() -> str:
    """The process's memory at its peak so far; Linux alone tells."""
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return f"resident {readable_bytes(1024 * int(peak[1]))}" if peak else "resident unknown"


def enlarged(pipeline: FluxPipeline, runner: OffloadRunner, side: int) -> tuple[torch.Tensor, str]:
    """Latents (1, 16, h, w) of the pocket model's picture, enlarged."""
    begun = time.perf_counter()
    small = pipeline(TEXT, width=SMALL, height=SMALL, seed=1, **POCKET_SAMPLING).images
    latents = encode_pixels(runner, pipeline.vae, to_pixels(resized(small, side, side)))
    seconds = readable_seconds(time.perf_counter() - begun)
    return latents, f"a small picture, enlarged and encoded: {seconds}, {resident()}"


def large_request(
    pipeline: FluxPipeline, runner: OffloadRunner, args: argparse.Namespace
) -> DrawRequest:
    """The pocket model's picture, enlarged, for its upscaler to draw anew."""
    latents = kept(args, "enlarged", lambda: enlarged(pipeline, runner, args.side))
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


def drawn(request: DrawRequest, runner: OffloadRunner, budget: int) -> tuple[torch.Tensor, str]:
    """Latents (1, 16, h, w) of the request, and what they took against the plan."""
    assert request.tiles is not None
    plans: list[Plan] = []

    def run(plan: Plan) -> torch.Tensor:
        plans.append(plan)
        return sample(request)

    noise, work = request.noise_schedule.noise, request.work
    begun = time.perf_counter()
    with LiveBytes() as counted:
        latents = runner.run("transformer", request.modules, run, work)
    seconds = readable_seconds(time.perf_counter() - begun)
    # a card has a copy of the noise; the whole conditions wait on the host
    conditions = len(request.controls) * request.latents.nbytes
    peak, plan = counted.peak + noise.nbytes - conditions, plans[-1]
    windows = len(request.tiles.windows(*request.latents.shape[-2:]))
    held = f"{readable_bytes(peak)} of {readable_bytes(budget)}"
    planned = f"planned {readable_bytes(plan.peak)} ({peak / plan.peak - 1:+.1%})"
    return latents, f"latents, {windows} windows a step: {held}, {planned}, {seconds}, {resident()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--budget", type=float, default=0.5, help="gigabytes")
    parser.add_argument("--keep", type=Path, help="folder from which an interrupted run goes on")
    parser.add_argument("--out", type=Path, help="where the picture is written")
    args = parser.parse_args()
    budget = int(args.budget * 1e9)
    policy = OffloadPolicy("component", vram_budget=budget, separate_memory=True)
    pipeline = FluxPipeline.from_pocket(policy=policy, device="cpu")
    runner = OffloadRunner(policy, "cpu")
    request = large_request(pipeline, runner, args)
    print(f"{args.side}x{args.side}, {args.steps} steps", flush=True)
    latents = kept(args, "drawn", lambda: drawn(request, runner, budget))
    begun = time.perf_counter()
    (images,) = decode_pictures(runner, pipeline.vae, [latents])
    seconds = readable_seconds(time.perf_counter() - begun)
    tile = 8 * (runner.report.parts["VAE decoder"].tile or 0)
    print(f"decoded in tiles of {tile} pixels: {seconds}, {resident()}", flush=True)
    assert request.tiles is not None
    rows, columns = request.tiles.seams(*latents.shape[-2:])
    print(f"seams: {seam_ratio(images, rows, columns):.2f} of what is nearby")
    if args.out is not None:
        with writing(args.out) as path:
            Image.fromarray((images[0] * 255).byte().numpy()).save(path, format="PNG")


if __name__ == "__main__":
    main()
