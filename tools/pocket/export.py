"""Write the trained parts as the files that people have: ``assets/pocket/<model folder>/``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flux_core.pipeline import pocket_file
from flux_core.sampling import standardise

from . import cache
from .common import ASSETS, arguments, averaged


def write(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Save in bfloat16, to a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: (v.bfloat16() if v.is_floating_point() else v).contiguous().clone()
        for k, v in state.items()
    }
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"format": "pt"} | (metadata or {}))
    partial.chmod(0o644)
    partial.replace(path)
    print(f"{path.relative_to(ASSETS)}: {path.stat().st_size / 2**20:.1f} MiB")


def latent_rgb(vae) -> list[list[float]]:
    """Least-squares factors (17, 3) from standardised latents to small RGB pictures in [-1, 1]."""
    pictures = cache.pictures_of(range(-64, 0), 128)
    with torch.no_grad():
        latents = standardise(vae.encode(pictures)).movedim(1, -1).reshape(-1, 16)
    colours = torch.nn.functional.avg_pool2d(pictures, 8).movedim(1, -1).reshape(-1, 3)
    ones = torch.ones(len(latents), 1)
    return torch.linalg.lstsq(torch.cat([latents, ones], 1), colours).solution.tolist()


def main() -> None:
    args = arguments(__doc__, transformer="transformer_256", controlnet="controlnet")
    encoders = cache.load_encoders(args.out)
    rgb = {"fluxfit.latent_rgb": json.dumps(latent_rgb(encoders.vae))}
    write(encoders.vae.state_dict(), pocket_file("vae", "_vae"))
    write(averaged(args.out, args.transformer), pocket_file("diffusion_models"), rgb)
    if (args.out / f"{args.controlnet}.pt").exists():
        write(averaged(args.out, args.controlnet), pocket_file("controlnet", "_upscaler"))
    clip = {
        "text_model." + k.removeprefix("text_model."): v
        for k, v in encoders.clip.state_dict().items()
    }
    write(clip, pocket_file("text_encoders", "_clip_l"))
    t5 = encoders.t5.state_dict()
    t5.pop("encoder.embed_tokens.weight", None)
    write(t5, pocket_file("text_encoders", "_t5"))
    for name in ("tokenizer", "tokenizer_2"):
        target = ASSETS / "text_encoders" / name
        shutil.copytree(args.out / "tokenizers" / name, target, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
