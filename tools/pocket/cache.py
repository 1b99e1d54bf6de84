"""Latents and captions, encoded once: what the transformer and its ControlNet train on.

They are made by the text encoders and the VAE under ``assets/pocket``, as ``export`` wrote them, so
that a later training sees what everybody else sees.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import AutoEncoder, TextEncoders, load_text_encoders, load_vae
from flux_core.pocket import pocket_file
from flux_core.sampling.images import to_pixels
from flux_core.sampling.latents import standardise
from tools.pocket.captions import describe
from tools.pocket.common import arguments
from tools.pocket.degrade import degrade
from tools.pocket.scenes import Scene, draw, random_scene

CAPTIONS = 2  # a picture


def open_encoders() -> tuple[TextEncoders, AutoEncoder]:
    """The finished text encoders and VAE, in float32."""
    clip, t5 = pocket_file("text_encoders", "_clip_l"), pocket_file("text_encoders", "_t5")
    return (
        load_text_encoders(clip, t5, precision="fp32"),
        load_vae(pocket_file("vae", "_vae"), dtype=torch.float32),
    )


def scene_of(index: int) -> tuple[random.Random, Scene]:
    """A scene by its number, and the random numbers to draw it with."""
    rng = random.Random(f"scene {index}")
    return rng, random_scene(rng)


def pictures_of(indices: range, side: int, blurred: bool = False) -> Tensor:
    """Pictures of scenes (B, 3, side, side) in [-1, 1], or what the upscaler sees of them."""
    pictures = []
    for index in indices:
        rng, scene = scene_of(index)
        pictures.append(draw(scene, side, rng))
    images = torch.from_numpy(np.stack(pictures)).float() / 255
    return to_pixels(enlarged(degrade(images), side) if blurred else images)


def enlarged(images: Tensor, side: int) -> Tensor:
    """Pictures (B, H, W, 3) bicubically enlarged, as ControlNetUpscalerFP8 does it."""
    pixels = F.interpolate(images.movedim(-1, 1), (side, side), mode="bicubic", antialias=True)
    return pixels.clamp(0, 1).movedim(1, -1)


def captions_of(indices: range) -> list[str]:
    """``CAPTIONS`` sentences about each scene."""
    texts = []
    for index in indices:
        rng = random.Random(f"captions {index}")
        texts += [describe(scene_of(index)[1], rng).text for _ in range(CAPTIONS)]
    return texts


@torch.no_grad()
def build(
    out: Path, side: int, count: int, blurred: bool = False, device: str = "cpu"
) -> dict[str, Tensor]:
    """Latents of ``count`` scenes, and unless blurred their captions, kept in one file."""
    path = out / f"cache_{side}_{count}{'_blurred' * blurred}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    encoders, vae = (part.to(device) for part in open_encoders())
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, count, 50):
        indices = range(start, min(start + 50, count))
        pictures = pictures_of(indices, side, blurred).to(device)
        with torch.autocast(device, torch.bfloat16):
            latents = vae.encode(pictures).float().cpu()
        parts.setdefault("latents", []).append(standardise(latents).bfloat16())
        if not blurred:
            text = encoders.encode(captions_of(indices))
            for name, value in (("context", text.context), ("pooled", text.pooled)):
                parts.setdefault(name, []).append(
                    value.unflatten(0, (-1, CAPTIONS)).bfloat16().cpu()
                )
        if start % 1000 == 0:
            print(f"cache {side}: {start}/{count}", flush=True)
    cache = {name: torch.cat(values) for name, values in parts.items()}
    if not blurred:
        empty = encoders.encode([""])
        cache["no_context"] = empty.context.bfloat16().cpu()
        cache["no_pooled"] = empty.pooled.bfloat16().cpu()
    out.mkdir(parents=True, exist_ok=True)
    torch.save(cache, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
    return cache


def main() -> None:
    args = arguments(__doc__, side=128, count=16_000, blurred=0)
    build(args.out, args.side, args.count, bool(args.blurred), args.device)


if __name__ == "__main__":
    main()
