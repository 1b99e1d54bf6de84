"""Write what is trained so far as the files that people have: ``assets/pocket/<model folder>/``.

Parts whose training has left nothing under ``.cache/pocket`` stay as they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from flux_core import AutoEncoder
from flux_core.checkpoint.save import to_diffusers
from flux_core.models.config import ControlNetConfig
from flux_core.models.controlnet import FluxControlNet
from flux_core.pocket import pocket_file
from flux_core.sampling.latents import standardise
from tools.pocket import cache, train_edit, train_redux, train_text, train_vae
from tools.pocket.common import ASSETS, arguments, averaged


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


def part_of(state: dict[str, Tensor], prefix: str, new: str = "") -> dict[str, Tensor]:
    """The tensors under a prefix, put under another."""
    return {new + k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def finished_vae(out: Path) -> AutoEncoder:
    """The averaged VAE with its latents rescaled to FLUX.1's constants.

    Channels are divided by their measured deviation in the encoder's last layer and multiplied by
    it in the decoder's first, which changes no picture.
    """
    vae = AutoEncoder(train_vae.CONFIG).eval()
    vae.load_state_dict(averaged(out, "vae"))
    with torch.no_grad():
        spread = vae.encode(cache.pictures_of(range(-64, 0), 128)).std(dim=(0, 2, 3))
        factor = 1 / (vae.config.scale_factor * spread)  # (16,)
        last, first = vae.encoder.conv_out, vae.decoder.conv_in
        z = vae.config.z_channels
        last.weight[:z] *= factor[:, None, None, None]
        last.bias[:z] *= factor
        last.bias[z:] += 2 * factor.log()
        first.weight /= factor[None, :, None, None]
    return vae


def latent_rgb(vae: AutoEncoder) -> list[list[float]]:
    """Least-squares factors (17, 3) from standardised latents to small RGB pictures in [-1, 1]."""
    pictures = cache.pictures_of(range(-64, 0), 128)
    with torch.no_grad():
        latents = standardise(vae.encode(pictures)).movedim(1, -1).reshape(-1, 16)
    colours = torch.nn.functional.avg_pool2d(pictures, 8).movedim(1, -1).reshape(-1, 3)
    ones = torch.ones(len(latents), 1)
    return torch.linalg.lstsq(torch.cat([latents, ones], 1), colours).solution.tolist()


def write_text(out: Path) -> None:
    """Text encoders and their tokenizers."""
    for name in ("tokenizer", "tokenizer_2"):
        target = ASSETS / "text_encoders" / name
        shutil.copytree(out / "tokenizers" / name, target, dirs_exist_ok=True)
    t5_tokenizer, clip_tokenizer = train_text.load_tokenizers(out)
    clip = train_text.new_clip(len(clip_tokenizer))
    clip.load_state_dict(part_of(averaged(out, "text_clip"), "clip."))
    state = {k.removeprefix("text_model."): v for k, v in clip.state_dict().items()}
    write(part_of(state, "", "text_model."), pocket_file("text_encoders", "_clip_l"))
    t5 = train_text.new_t5(len(t5_tokenizer))
    t5.load_state_dict(part_of(averaged(out, "text_t5"), "t5."))
    state = t5.state_dict()
    state.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
    write(state, pocket_file("text_encoders", "_t5"))


def write_upscaler(out: Path, name: str) -> None:
    """The ControlNet by diffusers' names, which the host's own loader knows as well."""
    tensors = averaged(out, name)
    net = FluxControlNet(
        ControlNetConfig.from_shapes({k: tuple(t.shape) for k, t in tensors.items()})
    )
    write(to_diffusers(net, tensors), pocket_file("controlnet", "_upscaler"))


def write_redux(out: Path, name: str) -> None:
    """The vision encoder by the names of SigLIP's single files, and Redux by its own."""
    words = train_redux.PictureWords()
    train_redux.load(words, out, name)
    seen = part_of(words.vision.state_dict(), "", "vision_model.")
    write(seen, pocket_file("clip_vision", "_siglip"))
    write(words.redux.state_dict(), pocket_file("style_models", "_redux"))


def main() -> None:
    args = arguments(
        __doc__,
        transformer="transformer_256",
        controlnet="controlnet",
        redux="redux",
        edit=f"edit_{train_edit.WINDOW}",
    )

    def trained(name: str) -> bool:
        return (args.out / f"{name}.pt").exists()

    if trained("text_clip") and trained("text_t5"):
        write_text(args.out)
    if trained("vae"):
        write(finished_vae(args.out).state_dict(), pocket_file("vae", "_vae"))
    if trained(args.transformer):
        vae = cache.open_encoders()[1]
        metadata = {"fluxfit.latent_rgb": json.dumps(latent_rgb(vae))}
        write(averaged(args.out, args.transformer), pocket_file("diffusion_models"), metadata)
    if trained(args.controlnet):
        write_upscaler(args.out, args.controlnet)
    if trained(args.redux):
        write_redux(args.out, args.redux)
    if trained(args.edit):
        train_edit.write_lora(args.out, args.edit, pocket_file("loras", "_edit"))


if __name__ == "__main__":
    main()
