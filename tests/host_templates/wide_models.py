"""Files with FLUX.1's real widths and few blocks, of random numbers, under the names of templates.

The host's own loaders take the widths of FLUX.1, of T5-XXL, CLIP-L and the VAE for granted; only
the transformer's depth is read from its file. About 13 GB, written once to a folder that stays.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flux_core.models.config import TransformerConfig, VAEConfig
from flux_core.models.text_encoders import ClipEncoder, T5Encoder, clip_l_config, t5_config
from flux_core.models.transformer import FluxTransformer
from flux_core.models.vae import AutoEncoder

Tensors = dict[str, Tensor]
Shape = tuple[int, ...]

RANK = 4
DEPTH = {"depth": 1, "depth_single_blocks": 1}
#: Sizes of SigLIP at 384 pixels, which Redux reads.
SIGLIP, SIGLIP_MLP, SIGLIP_LAYERS, SIGLIP_TOKENS, SIGLIP_PATCH = 1152, 4304, 27, 729, 14
CONTEXT, HIDDEN = 4096, 3072
FP8 = torch.float8_e4m3fn

#: Further names under which templates ask for a file.
LINKS = {
    "diffusion_models/flux1-dev.safetensors": (
        "diffusion_models/flux1-krea-dev_fp8_scaled.safetensors",
        "diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors",
        "diffusion_models/flux1-dev-fp8.safetensors",
    ),
    "diffusion_models/flux1-fill-dev.safetensors": (
        "diffusion_models/flux.1-fill-dev-OneReward-transformer_fp8.safetensors",
    ),
    "text_encoders/t5xxl_fp16.safetensors": ("text_encoders/t5xxl_fp8_e4m3fn_scaled.safetensors",),
    "checkpoints/flux1-schnell-fp8.safetensors": ("checkpoints/flux1-dev-fp8.safetensors",),
}


def filled(
    shapes: Mapping[str, Shape], dtype: torch.dtype, seed: int, share: float = 0.5
) -> Tensors:
    """Random tensors that keep the size of what goes through them, norms near 1."""
    g = torch.Generator().manual_seed(seed)

    def tensor(name: str, shape: Shape) -> Tensor:
        numbers = torch.empty(shape)
        if len(shape) < 2:
            norm = "norm" in name and not name.endswith("bias")
            return numbers.normal_(float(norm), 0.02, generator=g).to(dtype)
        if "embed" in name or name == "shared.weight":
            return numbers.normal_(0, 1.0 if "shared" in name else 0.02, generator=g).to(dtype)
        return numbers.normal_(0, share / math.sqrt(math.prod(shape[1:])), generator=g).to(dtype)

    return {name: tensor(name, shape) for name, shape in shapes.items()}


def shapes_of(build: Callable[[], nn.Module]) -> dict[str, Shape]:
    with torch.device("meta"):
        model = build()
    return {name: tuple(t.shape) for name, t in model.state_dict().items()}


def transformer(channels: int = 64, guidance: bool = True, seed: int = 0) -> Tensors:
    config = TransformerConfig(in_channels=channels, guidance_embed=guidance, **DEPTH)
    return filled(shapes_of(lambda: FluxTransformer(config)), torch.bfloat16, seed)


def vae() -> Tensors:
    shapes = shapes_of(lambda: AutoEncoder(VAEConfig()))
    return filled(shapes, torch.bfloat16, seed=3, share=1.0)


def clip_l() -> Tensors:
    sizes = {
        "text_model.embeddings.token_embedding.weight": (49408, 768),
        "text_model.embeddings.position_embedding.weight": (77, 768),
    } | {f"text_model.encoder.layers.{i}.mlp.fc1.weight": (3072, 768) for i in range(12)}
    shapes = shapes_of(lambda: ClipEncoder(clip_l_config(sizes)))
    return filled({k: v for k, v in shapes.items() if "position_ids" not in k}, torch.float16, 4)


def t5() -> Tensors:
    """T5-XXL; its layers share their numbers, so that writing it takes no minutes."""
    attention = "encoder.block.0.layer.0.SelfAttention"
    sizes = {
        "shared.weight": (32128, CONTEXT),
        f"{attention}.relative_attention_bias.weight": (32, 64),
        f"{attention}.q.weight": (CONTEXT, CONTEXT),
        "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (10240, CONTEXT),
    }
    shapes = shapes_of(lambda: T5Encoder(t5_config(sizes | {"encoder.block.0.": ()})))
    shapes.pop("encoder.embed_tokens.weight", None)
    first = filled(shapes, torch.float16, seed=5)
    first = {k: t.to(FP8) if t.ndim > 1 else t for k, t in first.items()}
    block = "encoder.block.0."
    others = {
        name.replace(block, f"encoder.block.{i}."): tensor.clone()
        for i in range(1, 24)
        for name, tensor in first.items()
        if name.startswith(block) and "relative_attention_bias" not in name
    }
    return first | others


def siglip() -> Tensors:
    shapes: dict[str, Shape] = {
        "vision_model.embeddings.patch_embedding.weight": (SIGLIP, 3, SIGLIP_PATCH, SIGLIP_PATCH),
        "vision_model.embeddings.patch_embedding.bias": (SIGLIP,),
        "vision_model.embeddings.position_embedding.weight": (SIGLIP_TOKENS, SIGLIP),
        "vision_model.post_layernorm.weight": (SIGLIP,),
        "vision_model.post_layernorm.bias": (SIGLIP,),
    }
    linears = {f"self_attn.{n}_proj": (SIGLIP, SIGLIP) for n in ("q", "k", "v", "out")}
    linears |= {"mlp.fc1": (SIGLIP_MLP, SIGLIP), "mlp.fc2": (SIGLIP, SIGLIP_MLP)}
    for i in range(SIGLIP_LAYERS):
        layer = f"vision_model.encoder.layers.{i}."
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{layer}{norm}.{n}": (SIGLIP,) for n in ("weight", "bias")}
    return filled(shapes, torch.float16, seed=6)


def redux() -> Tensors:
    up, down = (3 * CONTEXT, SIGLIP), (CONTEXT, 3 * CONTEXT)
    shapes = {"redux_up.weight": up, "redux_up.bias": up[:1]}
    shapes |= {"redux_down.weight": down, "redux_down.bias": down[:1]}
    return filled(shapes, torch.bfloat16, seed=7)


def uso_projector() -> Tensors:
    shapes: dict[str, Shape] = {}
    for level in ("high", "mid", "low"):
        shapes |= {
            f"{level}_embedding_linear.0.weight": (64, SIGLIP_TOKENS),
            f"{level}_embedding_linear.0.bias": (64,),
            f"{level}_layer_norm.weight": (SIGLIP,),
            f"{level}_layer_norm.bias": (SIGLIP,),
            f"{level}_projection.weight": (HIDDEN, SIGLIP),
            f"{level}_projection.bias": (HIDDEN,),
        }
    return filled(shapes, torch.bfloat16, seed=8)


def linears() -> Iterable[tuple[str, Shape]]:
    config = TransformerConfig(**DEPTH)
    for name, shape in shapes_of(lambda: FluxTransformer(config)).items():
        if len(shape) == 2:
            yield name.removesuffix(".weight"), shape


def lora(seed: int) -> Tensors:
    """A LoRA for the layers of the blocks, as trainers write it."""
    shapes: dict[str, Shape] = {}
    for name, (out, width) in linears():
        if "_blocks." in name:
            shapes[f"diffusion_model.{name}.lora_A.weight"] = (RANK, width)
            shapes[f"diffusion_model.{name}.lora_B.weight"] = (out, RANK)
    return filled(shapes, torch.bfloat16, seed)


def depth_lora() -> Tensors:
    """As the LoRAs of the Depth and Canny tools: all layers, biases, norms and a wider input."""
    shapes: dict[str, Shape] = {}
    for name, (out, width) in linears():
        shapes[f"{name}.lora_A.weight"] = (RANK, 128 if name == "img_in" else width)
        shapes[f"{name}.lora_B.weight"] = (out, RANK)
        shapes[f"{name}.lora_B.bias"] = (out,)
    for norm in ("double_blocks.0.img_attn", "double_blocks.0.txt_attn", "single_blocks.0"):
        shapes |= {f"{norm}.norm.{n}_norm.scale": (128,) for n in ("key", "query")}
    return filled(shapes, torch.bfloat16, seed=9)


def checkpoint() -> Tensors:
    """All parts in one file, as the fp8 checkpoints that the host's authors publish."""
    parts = {
        "model.diffusion_model.": transformer(guidance=False, seed=1),
        "text_encoders.clip_l.transformer.": clip_l(),
        "text_encoders.t5xxl.transformer.": t5(),
        "vae.": vae(),
    }
    return {begin + name: t for begin, part in parts.items() for name, t in part.items()}


FILES: dict[str, Callable[[], Tensors]] = {
    "diffusion_models/flux1-dev.safetensors": transformer,
    "diffusion_models/flux1-schnell.safetensors": lambda: transformer(guidance=False, seed=1),
    "diffusion_models/flux1-fill-dev.safetensors": lambda: transformer(384, seed=2),
    "diffusion_models/flux1-canny-dev.safetensors": lambda: transformer(128, seed=2),
    "text_encoders/clip_l.safetensors": clip_l,
    "text_encoders/t5xxl_fp16.safetensors": t5,
    "vae/ae.safetensors": vae,
    "clip_vision/sigclip_vision_patch14_384.safetensors": siglip,
    "style_models/flux1-redux-dev.safetensors": redux,
    "model_patches/uso-flux1-projector-v1.safetensors": uso_projector,
    "loras/uso-flux1-dit-lora-v1.safetensors": lambda: lora(10),
    "loras/removal_timestep_alpha-2-1740.safetensors": lambda: lora(11),
    "loras/flux1-depth-dev-lora.safetensors": depth_lora,
    "checkpoints/flux1-schnell-fp8.safetensors": checkpoint,
}

#: All files by folder and name.
NAMES = {*FILES, *(name for links in LINKS.values() for name in links)}


def write_wide_models(folder: Path) -> None:
    """Write what ``folder`` lacks; a file is whole or not there."""
    for name, build in FILES.items():
        path = folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            save_file(build(), part)
            os.replace(part, path)
        for other in LINKS.get(name, ()):
            link = folder / other
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.hardlink_to(path)
