"""Tiny random Chroma transformers, ours and diffusers', and what they are called with."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from flux_core.models.chroma import ChromaConfig, ChromaTransformer
from tests import tiny_models

CHROMA = ChromaConfig(
    context_in_dim=tiny_models.CONTEXT,
    hidden_size=tiny_models.HIDDEN,
    depth=3,
    depth_single_blocks=5,
    approximator_hidden=96,
    approximator_layers=2,
)


@tiny_models.drawn_once
def chroma_transformer(config: ChromaConfig = CHROMA, seed: int = 0) -> ChromaTransformer:
    """Ours, of random float32 numbers."""
    model = tiny_models.randomise(ChromaTransformer(config), seed)
    return cast(ChromaTransformer, model.requires_grad_(False))


@tiny_models.drawn_once
def diffusers_transformer(config: ChromaConfig = CHROMA, seed: int = 0) -> nn.Module:
    from diffusers import ChromaTransformer2DModel

    return tiny_models.randomise(
        ChromaTransformer2DModel(
            in_channels=config.in_channels,
            num_layers=config.depth,
            num_single_layers=config.depth_single_blocks,
            attention_head_dim=tiny_models.HEAD,
            num_attention_heads=config.num_heads,
            joint_attention_dim=config.context_in_dim,
            approximator_num_channels=config.approximator_in,
            approximator_hidden_dim=config.approximator_hidden,
            approximator_layers=config.approximator_layers,
        ),
        seed,
    ).requires_grad_(False)


def inputs(batch: int = 2, text: int = 5) -> dict[str, Tensor]:
    """Arguments of a forward, float32; there is no pooled vector."""
    return tiny_models.inputs(batch, text=text) | {"y": torch.zeros(batch, 0)}


def to_diffusers(kwargs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same arguments under diffusers' names."""
    renamed = tiny_models.to_diffusers(kwargs)
    return {k: v for k, v in renamed.items() if k not in ("pooled_projections", "guidance")}
