"""Latents and captions, encoded once: what the transformer and its ControlNet train on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from flux_core.pipeline import to_pixels
from flux_core.vae import AutoEncoder

from . import tokenizers, train_text, train_vae
from .captions import describe
from .common import arguments, averaged
from .degrade import degrade
from .scenes import draw, random_scene

CAPTIONS = 2  # a picture


@dataclass
class Encoders:
    """The finished VAE and text encoders, as ``export`` writes them."""

    vae: AutoEncoder
    t5: T5EncoderModel
    clip: CLIPTextModel
    t5_tokenizer: T5Tokenizer
    clip_tokenizer: CLIPTokenizer

    @torch.no_grad()
    def text(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Context (B, 40, D) and pooled (B, P)."""
        t5_ids = train_text.encode(self.t5_tokenizer, texts, tokenizers.T5_LENGTH)
        clip_ids = train_text.encode(self.clip_tokenizer, texts, tokenizers.CLIP_LENGTH)
        context = self.t5(input_ids=t5_ids).last_hidden_state
        return context, self.clip(input_ids=clip_ids).pooler_output

    @torch.no_grad()
    def latents(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] to standardised latents (B, 16, h, w)."""
        config = self.vae.config
        with torch.autocast("cpu", torch.bfloat16):
            mean = self.vae.encode(pictures).float()
        return (mean - config.shift_factor) * config.scale_factor


def finished_vae(out: Path) -> AutoEncoder:
    """The averaged VAE with its latents rescaled to FLUX.1's constants.

    Channels are divided by their measured deviation in the encoder's last layer and multiplied by
    it in the decoder's first, which changes no picture.
    """
    vae = AutoEncoder(train_vae.CONFIG).eval()
    vae.load_state_dict(averaged(out, "vae"))
    pictures = pictures_of(range(-64, 0), 128)
    with torch.no_grad():
        spread = vae.encode(pictures).std(dim=(0, 2, 3))
        factor = 1 / (vae.config.scale_factor * spread)  # (16,)
        last, first = vae.encoder.conv_out, vae.decoder.conv_in
        z = vae.config.z_channels
        last.weight[:z] *= factor[:, None, None, None]
        last.bias[:z] *= factor
        last.bias[z:] += 2 * factor.log()
        first.weight /= factor[None, :, None, None]
    return vae


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def load_encoders(out: Path) -> Encoders:
    t5_tokenizer, clip_tokenizer = train_text.load_tokenizers(out)
    t5 = train_text.new_t5(len(t5_tokenizer)).eval()
    t5.load_state_dict(part_of(averaged(out, "text_t5"), "t5."))
    clip = train_text.new_clip(len(clip_tokenizer)).eval()
    clip.load_state_dict(part_of(averaged(out, "text_clip"), "clip."))
    return Encoders(finished_vae(out), t5, clip, t5_tokenizer, clip_tokenizer)


def scene_of(index: int) -> tuple[random.Random, object]:
    rng = random.Random(f"scene {index}")
    return rng, random_scene(rng)


def pictures_of(indices: range, side: int, blurred: bool = False) -> Tensor:
    """Pictures of scenes (B, 3, side, side) in [-1, 1], or what the upscaler sees of them."""
    pictures = []
    for index in indices:
        rng, scene = scene_of(index)
        pictures.append(draw(scene, side, rng))
    images = torch.from_numpy(np.stack(pictures)).float() / 255
    if blurred:
        images = enlarged(degrade(images), side)
    return to_pixels(images)


def enlarged(images: Tensor, side: int) -> Tensor:
    """Pictures (B, H, W, 3) bicubically enlarged, as ControlNetUpscalerFP8 does it."""
    pixels = F.interpolate(images.movedim(-1, 1), (side, side), mode="bicubic", antialias=True)
    return pixels.clamp(0, 1).movedim(1, -1)


def build(out: Path, side: int, count: int, blurred: bool = False) -> dict[str, Tensor]:
    """Latents of ``count`` scenes and two captions each, kept in one file."""
    path = out / f"cache_{side}_{count}{'_blurred' * blurred}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    encoders = load_encoders(out)
    parts: dict[str, list[Tensor]] = {"latents": [], "context": [], "pooled": []}
    for start in range(0, count, 50):
        indices = range(start, min(start + 50, count))
        parts["latents"].append(encoders.latents(pictures_of(indices, side, blurred)).bfloat16())
        if not blurred:
            texts = []
            for index in indices:
                rng = random.Random(f"captions {index}")
                texts += [describe(scene_of(index)[1], rng).text for _ in range(CAPTIONS)]
            for name, value in zip(("context", "pooled"), encoders.text(texts), strict=True):
                value = value.unflatten(0, (-1, CAPTIONS))
                parts[name].append(value.bfloat16())
        if start % 1000 == 0:
            print(f"cache {side}: {start}/{count}", flush=True)
    cache = {name: torch.cat(values) for name, values in parts.items() if values}
    if not blurred:
        cache["no_context"], cache["no_pooled"] = (v.bfloat16() for v in encoders.text([""]))
    torch.save(cache, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
    return cache


def main() -> None:
    args = arguments(__doc__, side=128, count=16_000, blurred=0)
    build(args.out, args.side, args.count, bool(args.blurred))


if __name__ == "__main__":
    main()
