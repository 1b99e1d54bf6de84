"""Say what a card will do with a model, before it is bought."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .outcome import Outcome

if TYPE_CHECKING:
    from flux_core.sampling.estimate import PicturePlan

HELP = "what a card will do with FLUX.1-dev or another model"

#: Gigabytes, link in GB/s and effective TFLOP/s of linear layers, as such cards commonly have them.
COMMON_GPUS = (
    (6, 12.5, 25, "PCIe 3 x16"),
    (8, 12.5, 40, "PCIe 4 x8"),
    (10, 25, 60, "PCIe 4 x16"),
    (12, 25, 60, "PCIe 4 x16"),
    (16, 25, 100, "PCIe 4 x16"),
    (24, 25, 165, "PCIe 4 x16"),
)
KEPT_FREE = 0.6  # gigabytes of a card that the driver and the desktop take


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="FLUX.1-dev", help="FLUX.1-dev, Chroma, ...")
    parser.add_argument(
        "--vram", type=float, help="gigabytes; without it, a table over common ones"
    )
    parser.add_argument("--link", type=float, default=25, help="GB/s; PCIe 3, 4, 5: 12.5, 25, 55")
    parser.add_argument("--tflops", type=float, default=70, help="of linear layers, effective")
    parser.add_argument("--ram", type=float, help="gigabytes of host memory")
    parser.add_argument("--steps", type=int, help="28 or, for schnell and distilled klein, 4")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--precision", default="fp8_scaled")


def run(args: argparse.Namespace) -> Outcome:
    from flux_core.bounds import MOST_STEPS, check_number
    from flux_core.sampling.sizes import check_size

    check_size(args.width, args.height)
    for name in ("vram", "link", "tflops", "ram"):
        value = getattr(args, name)
        if value is not None:
            check_number(value, name, 1e-3, 1e9)
    if args.steps is not None:
        check_number(args.steps, "steps", 1, MOST_STEPS, whole=True)

    from flux_core.models.families import published_as
    from flux_core.offload.machine import Machine
    from flux_core.quant import PRECISIONS
    from flux_core.sampling.estimate import plan_picture, published_models

    if args.precision not in PRECISIONS:
        raise ValueError(
            f"precision is {args.precision!r}, expected one of {', '.join(PRECISIONS)}"
        )
    family, _ = published_as(args.model)
    steps = family.steps if args.steps is None else args.steps
    models = published_models(args.model, args.precision)
    lines = [f"{args.model} in {args.precision}, {args.width}x{args.height}, {steps} steps"]
    rows = []
    gpus = COMMON_GPUS
    if args.vram:
        gpus = ((args.vram, args.link, args.tflops, f"{args.link:g} GB/s"),)
    for vram, link, tflops, name in gpus:
        picture = plan_picture(
            Machine(link * 1e9, tflops * 1e12),
            vram=(vram - KEPT_FREE) * 1e9,
            ram=args.ram and args.ram * 1e9,
            width=args.width,
            height=args.height,
            steps=steps,
            models=models,
        )
        line = f"{vram:>4g} GB, {tflops:g} TFLOP/s ({name}): {picture}"
        lines.append(line + f", {picture.seconds(steps):.0f} s a picture" * picture.fits)
        about = {"vram": vram, "link": link, "tflops": tflops, "name": name}
        rows.append(about | plan_data(picture, steps))
    data = {"model": args.model, "precision": args.precision, "steps": steps, "rows": rows}
    return Outcome("\n".join(lines), data | {"width": args.width, "height": args.height})


def plan_data(picture: PicturePlan, steps: int) -> dict[str, Any]:
    """A plan as numbers: bytes and seconds; of one that does not fit, the least that would do."""
    if not picture.fits:
        return {"fits": False, "least": picture.least}
    blocks, tile = picture.drawing.modules[0], picture.vae.tile
    return {
        "fits": True,
        "least": picture.least,
        "peak": picture.peak,
        "blocks": blocks.blocks,
        "resident_blocks": len(blocks.resident),
        "streamed_a_step": blocks.streamed,
        "from_disk_a_step": picture.from_disk,
        "vae_tile": picture.pixels * tile if tile else None,
        "seconds_a_step": picture.step,
        "seconds_a_picture": picture.seconds(steps),
    }
