"""What is learned: the velocity from the picture to the noise, at noise levels drawn at random.

    x_t = (1 - t) x + t n,   loss = mean w(t) (v(x_t, t) - (n - x))^2

which is flow matching on straight paths; a model that knows x and n has loss 0. Axis letters: B
pictures, h and w latents.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.families import family_of
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from ..models.text_encoders import TextEncoding
from ..models.transformer import FluxTransformer
from ..sampling.attention_masks import padding_mask
from ..sampling.inputs import model_inputs
from ..sampling.latents import image_ids, unpack
from .batch import Batch
from .config import ObjectiveConfig


def batch_loss(transformer: FluxTransformer, batch: Batch, config: ObjectiveConfig) -> Tensor:
    """The loss of each picture of a batch, (B,); the transformer has the LoRA on it."""
    geometry = family_of(transformer).tokens
    velocity = predict_velocity(
        transformer, batch.noisy, batch.times, batch.text, config.guidance, geometry
    )
    return flow_matching_loss(velocity, batch.latents, batch.noise, batch.weights, batch.mask)


def predict_velocity(
    transformer: FluxTransformer,
    noisy: Tensor,
    times: Tensor,
    text: TextEncoding,
    guidance: float,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> Tensor:
    """The velocity (B, 16, h, w) float32 at noisy standardised latents of that shape.

    Args:
        times: (B,) noise levels in (0, 1).
        text: context (B, N, D) and pooled (B, P).
        geometry: how the transformer's family reads latents.
    """
    height, width = noisy.shape[-2:]
    img_ids = image_ids(height, width, geometry=geometry).to(noisy.device)
    guidances = torch.full_like(times, guidance)
    about = (img_ids, text.context, text.pooled, times, guidances, geometry)
    inputs = model_inputs(noisy, *about)
    mask = padding_mask(text.mask, len(img_ids), noisy.device)
    if mask is not None:
        inputs["attention_mask"] = mask
    tokens = transformer(**inputs)
    return unpack(tokens.float(), height, width, geometry)


def flow_matching_loss(
    velocity: Tensor, latents: Tensor, noise: Tensor, weights: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The loss of each picture, (B,).

    Args:
        velocity, latents, noise: (B, 16, h, w); latents are standardised and without noise.
        weights: (B,).
        mask: (B, 1, h, w), how much each place counts; its own mean does not matter.
    """
    error = (velocity - (noise - latents)).square()
    if mask is not None:
        error = error * mask / mask.mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-6)
    return error.mean(dim=(1, 2, 3)) * weights
