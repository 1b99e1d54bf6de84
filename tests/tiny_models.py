"""Tiny random models with FLUX.1's shape, ours and diffusers', and their files."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flux_core.models.config import ControlNetConfig, TransformerConfig, VAEConfig
from flux_core.models.transformer import FluxTransformer

Make = TypeVar("Make", bound=Callable[..., nn.Module])
#: Bytes of a module, and modules, that ``drawn_once`` keeps.
LARGEST_KEPT, KEPT = 64_000_000, 3
HEADS, HEAD = 2, 128
HIDDEN = HEADS * HEAD
CONTEXT, POOLED = 48, 32

DEV = TransformerConfig(
    vec_in_dim=POOLED,
    context_in_dim=CONTEXT,
    hidden_size=HIDDEN,
    depth=3,
    depth_single_blocks=5,
)
#: For what does not depend on how many blocks there are.
ONE_OF_EACH = replace(DEV, depth=1, depth_single_blocks=1)
#: For what has to go on from block to block.
TWO_OF_EACH = replace(DEV, depth=2, depth_single_blocks=2)
VAE = VAEConfig(ch=32, ch_mult=(1, 2, 4, 4), num_res_blocks=1)
UPSCALER = ControlNetConfig(vec_in_dim=POOLED, context_in_dim=CONTEXT, hidden_size=HIDDEN, depth=2)


def randomise(module: nn.Module, seed: int = 0, deviation: float = 0.05) -> nn.Module:
    """Every parameter normal, so that nothing is hidden behind a zero or a one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            mean = (
                1.0
                if "norm" in name and name.endswith(("scale", "weight")) and p.ndim == 1
                else 0.0
            )
            p.copy_(mean + deviation * torch.randn(p.shape, generator=generator))
    return module.eval()


def drawn_once(make: Make) -> Make:
    """The same function, whose numbers are drawn once: each call gets a copy of its own. Large
    modules are not kept, and of small ones the last few."""
    kept: dict[object, nn.Module] = {}

    @wraps(make)
    def copied(*args: Any, **options: Any) -> nn.Module:
        key = args, tuple(sorted(options.items()))
        if key not in kept:
            module = make(*args, **options)
            if sum(p.nbytes for p in module.parameters()) > LARGEST_KEPT:
                return module
            if len(kept) == KEPT:
                kept.pop(next(iter(kept)))
            kept[key] = module
        return copy.deepcopy(kept[key])

    return cast(Make, copied)


@drawn_once
def flux_transformer(config: TransformerConfig = DEV, seed: int = 0) -> FluxTransformer:
    """Ours, of random float32 numbers."""
    return cast(FluxTransformer, randomise(FluxTransformer(config), seed))


@drawn_once
def diffusers_transformer(guidance: bool = True, in_channels: int = 64) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return randomise(
        FluxTransformer2DModel(
            in_channels=in_channels,
            out_channels=64,
            num_layers=DEV.depth,
            num_single_layers=DEV.depth_single_blocks,
            attention_head_dim=HEAD,
            num_attention_heads=HEADS,
            joint_attention_dim=CONTEXT,
            pooled_projection_dim=POOLED,
            guidance_embeds=guidance,
        )
    )


@drawn_once
def diffusers_controlnet(
    single: int = 0, modes: int | None = None, guidance: bool = True
) -> nn.Module:
    from diffusers import FluxControlNetModel

    return randomise(
        FluxControlNetModel(
            in_channels=64,
            num_layers=2,
            num_single_layers=single,
            attention_head_dim=HEAD,
            num_attention_heads=HEADS,
            joint_attention_dim=CONTEXT,
            pooled_projection_dim=POOLED,
            guidance_embeds=guidance,
            num_mode=modes,
        ),
        seed=1,
    )


@drawn_once
def diffusers_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    return randomise(
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=tuple(VAE.ch * m for m in VAE.ch_mult),
            layers_per_block=VAE.num_res_blocks,
            latent_channels=16,
            norm_num_groups=VAE.norm_groups,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    )


def inputs(batch: int = 2, height: int = 4, width: int = 6, text: int = 5) -> dict[str, Tensor]:
    """Arguments of a transformer's forward, float32."""
    from flux_core.sampling.latents import image_ids, image_tokens, text_ids

    g = torch.Generator().manual_seed(7)
    tokens = image_tokens(height, width)
    return {
        "img": torch.randn(batch, tokens, 64, generator=g),
        "img_ids": image_ids(height, width),
        "txt": torch.randn(batch, text, CONTEXT, generator=g),
        "txt_ids": text_ids(text),
        "timesteps": torch.linspace(0.3, 0.9, batch),
        "y": torch.randn(batch, POOLED, generator=g),
        "guidance": torch.full((batch,), 3.5),
    }


def to_diffusers(kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same arguments under diffusers' names."""
    names = {
        "img": "hidden_states",
        "txt": "encoder_hidden_states",
        "y": "pooled_projections",
        "timesteps": "timestep",
    }
    return {names.get(k, k): v for k, v in kwargs.items()}


def save(tensors: dict[str, Tensor], path: Path, prefix: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({prefix + k: v.contiguous().clone() for k, v in tensors.items()}, path)
    return path


def save_shards(tensors: dict[str, Tensor], folder: Path, count: int = 3) -> Path:
    """A Hugging Face folder with shards and their index."""
    names = sorted(tensors)
    where = {
        name: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(names)
    }
    for file in set(where.values()):
        save({n: tensors[n] for n in names if where[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def relative(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm())
