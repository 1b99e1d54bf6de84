"""Tiny random IP-Adapters, Redux models and vision encoders, in their public layouts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tests import tiny_models

EMBED, SIGLIP_EMBED, TOKENS, WIDE_TOKENS = 24, 128, 4, 6


def random_tensors(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        tensors[name] = mean + 0.1 * torch.randn(shape, generator=generator)
    return tensors


def xlabs(depth: int = tiny_models.DEV.depth, tokens: int = TOKENS, seed: int = 3) -> dict:
    """XLabs' layout: keys and values of the double blocks."""
    context, hidden = tiny_models.CONTEXT, tiny_models.HIDDEN
    shapes: dict[str, tuple[int, ...]] = {
        "ip_adapter_proj_model.proj.weight": (tokens * context, EMBED),
        "ip_adapter_proj_model.proj.bias": (tokens * context,),
        "ip_adapter_proj_model.norm.weight": (context,),
        "ip_adapter_proj_model.norm.bias": (context,),
    }
    for i in range(depth):
        for kind in "kv":
            name = f"double_blocks.{i}.processor.ip_adapter_double_stream_{kind}_proj"
            shapes |= {f"{name}.weight": (hidden, context), f"{name}.bias": (hidden,)}
    return random_tensors(shapes, seed)


def instantx(blocks: int = tiny_models.DEV.depth + tiny_models.DEV.depth_single_blocks) -> dict:
    """InstantX's layout, as its pickle is converted: keys and values of all blocks."""
    context, hidden, width = tiny_models.CONTEXT, tiny_models.HIDDEN, SIGLIP_EMBED
    shapes: dict[str, tuple[int, ...]] = {
        "image_proj.proj.0.weight": (2 * width, width),
        "image_proj.proj.0.bias": (2 * width,),
        "image_proj.proj.2.weight": (WIDE_TOKENS * context, 2 * width),
        "image_proj.proj.2.bias": (WIDE_TOKENS * context,),
        "image_proj.norm.weight": (context,),
        "image_proj.norm.bias": (context,),
    }
    for i in range(blocks):
        for kind in "kv":
            shapes[f"ip_adapter.{i}.to_{kind}_ip.weight"] = (hidden, context)
    return random_tensors(shapes, 4)


def clip_vision() -> nn.Module:
    """``transformers``' CLIP vision model with its projection."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 2}
    config = CLIPVisionConfig(
        **sizes, num_hidden_layers=3, image_size=28, patch_size=14, projection_dim=EMBED
    )
    return tiny_models.randomise(CLIPVisionModelWithProjection(config))


def siglip_vision(pooling: bool = True) -> nn.Module:
    """``transformers``' SigLIP vision model; 56 of its 64 pixels fill four patches of 14."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    sizes = {"hidden_size": SIGLIP_EMBED, "intermediate_size": 96, "num_attention_heads": 2}
    config = SiglipVisionConfig(
        **sizes, num_hidden_layers=3, image_size=64, patch_size=14, vision_use_head=pooling
    )
    return tiny_models.randomise(SiglipVisionModel(config))


def redux(context: int = tiny_models.CONTEXT) -> dict[str, Tensor]:
    """Redux's layout."""
    return random_tensors(
        {
            "redux_up.weight": (3 * context, SIGLIP_EMBED),
            "redux_up.bias": (3 * context,),
            "redux_down.weight": (context, 3 * context),
            "redux_down.bias": (context,),
        },
        5,
    )


def widened(file: dict, context: int, hidden: int) -> dict:
    """Random numbers of the pocket model's widths in the place of the tiny model's."""
    sides = {
        tiny_models.CONTEXT: context,
        tiny_models.HIDDEN: hidden,
        TOKENS * tiny_models.CONTEXT: TOKENS * context,
        WIDE_TOKENS * tiny_models.CONTEXT: WIDE_TOKENS * context,
    }
    inner = ("image_proj.proj.0", "image_proj.proj.2.weight")
    shapes = {}
    for name, tensor in file.items():
        shape = [sides.get(side, side) for side in tensor.shape]
        if name.startswith(inner):
            own = tensor.shape if "proj.0" in name else (shape[0], tensor.shape[1])
            shape = list(own)
        shapes[name] = tuple(shape)
    return random_tensors(shapes, 7)


def picture(height: int = 64, width: int = 64, seed: int = 6, count: int = 1) -> Tensor:
    """Random pictures (count, H, W, 3) in [0, 1], of whole 8-bit steps."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, height, width, 3), generator=generator) / 255


def host_vision(model: nn.Module, path: Path) -> Path:
    """A vision encoder as ComfyUI's single files have it: under ``vision_model.``."""
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("position_ids")}
    known = ("vision_model.", "visual_projection.")
    return tiny_models.save(
        {k if k.startswith(known) else f"vision_model.{k}": v for k, v in state.items()}, path
    )
