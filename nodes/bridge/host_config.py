"""What the host calls a transformer's sizes, and what stands for a model that it does not know."""

from __future__ import annotations

from typing import Any

from flux_core import FluxTransformer
from flux_core.models.families import family_of


def unet_config(transformer: FluxTransformer) -> dict[str, Any]:
    """A transformer's sizes by the host's names."""
    config, family = transformer.config, family_of(transformer)
    geometry = family.tokens
    packed = geometry.patch**2
    return {
        "image_model": family.host_model,
        "patch_size": geometry.patch,
        "in_channels": config.in_channels // packed,
        "out_channels": config.out_channels // packed,
        "vec_in_dim": config.vec_in_dim or None,
        "context_in_dim": config.context_in_dim,
        "hidden_size": config.hidden_size,
        "mlp_ratio": config.mlp_hidden / config.hidden_size,
        "num_heads": config.num_heads,
        "depth": config.depth,
        "depth_single_blocks": config.depth_single_blocks,
        "axes_dim": list(config.axes_dim),
        "theta": config.theta,
        "qkv_bias": transformer.bias,
        "guidance_embed": config.guidance_embed,
        "txt_ids_dims": [] if geometry.text_axis is None else [geometry.text_axis],
    }


class UnknownToHostError(ValueError):
    """A model that this host is too old for."""


class NoHostModel:
    """What stands on a MODEL wire where the host does not know the model; FluxSampler draws it."""

    def __init__(self, reason: str) -> None:
        self.__dict__["reason"] = reason

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ValueError(self.__dict__["reason"])
