"""A prompt made ready for one run: on the device, in the size of its area, with what is beside it.

Axis letters: B pictures, N text tokens, C latent channels, h and w latents, R reference tokens.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.config import VAEConfig
from ..models.families import family_of
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from ..models.transformer import FluxBody, FluxTransformer
from .concat import extra_channels, extra_latents
from .conditioning import AttentionBias, Conditioning, Control
from .latents import expand, image_ids, pack, standardise, token_grid
from .references import reference_tokens
from .regions import Area, Placed, weights
from .sigmas import SigmaTable

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """One entry of a prompt, for latents (B, C, h, w) of its area.

    ``weight`` (B, 1, h, w) is what it counts, None where it is alone; ``first`` and ``last`` are
    the sigmas between which it does. ``extra`` (B, E, h, w) stands beside the noise. ``references``
    are tokens (B, R, p^2 C) with positions ``reference_ids`` (R, axes).
    """

    name: str
    context: Tensor
    pooled: Tensor
    guidance: float | None
    height: int
    width: int
    img_ids: Tensor
    area: Area | None = None
    weight: Tensor | None = None
    background: bool = False
    first: float = math.inf
    last: float = -math.inf
    extra: Tensor | None = None
    references: Tensor | None = None
    reference_ids: Tensor | None = None
    still: bool = False
    mask: Tensor | None = None

    def active(self, sigma: float) -> bool:
        """Whether it counts at a sigma."""
        return self.last <= sigma <= self.first

    @property
    def batch(self) -> int:
        return len(self.context)

    @property
    def still_tokens(self) -> int:
        """Tokens that are modulated as at time 0."""
        return 0 if self.references is None or not self.still else self.references.shape[1]

    def vector_inputs(self, sigma: float) -> tuple[Tensor, Tensor, Tensor | None]:
        """Timesteps (B,), pooled text (B, P) and guidance (B,) of a whole batch."""
        timesteps = self.context.new_full((self.batch,), sigma, dtype=torch.float32)
        guidance = None
        if self.guidance is not None:
            guidance = torch.full_like(timesteps, self.guidance)
        return timesteps, self.pooled, guidance

    def vector(self, body: FluxBody, sigma: float) -> Tensor:
        """A body's modulation vector, (B, D), or (2 B, D) with tokens as at time 0."""
        timesteps, pooled, guidance = self.vector_inputs(sigma)
        if not self.still_tokens or not isinstance(body, FluxTransformer):
            return body.embed_vector(timesteps, pooled, guidance)
        return body.modulation_vector(timesteps, pooled, guidance, still=True)


def sigma_at(table: SigmaTable, share: float) -> float:
    """The sigma at a share of the schedule, from 0 (noise) to 1.

    Made in float64 and rounded once, as the host makes it: a step may lie exactly there.
    """
    if share <= 0:
        return 1.0
    if share >= 1:
        return 0.0
    return float(table.sigma(torch.tensor(1.0 - share, dtype=torch.float64)).float())


def prepare_prompt(
    placed: Placed,
    name: str,
    transformer: FluxTransformer,
    table: SigmaTable,
    shape: Sequence[int],
    device: torch.device,
    alone: bool,
) -> PreparedPrompt:
    """An entry ready for latents of a shape (B, C, h, w); ``alone`` where there is no other.

    Raises ``ValueError`` where the text encoders do not belong to the transformer.
    """
    prompt, area = placed.prompt, placed.area
    batch, height, width = shape[0], shape[-2], shape[-1]
    vae, geometry = family_of(transformer).vae, family_of(transformer).tokens
    context, pooled = checked(prompt, transformer)
    extra = extra_of(prompt, transformer, shape)
    if area is not None:
        extra = None if extra is None else area.cut(extra)
        height, width = area.height, area.width
    references = ids = None
    if prompt.references is not None and prompt.references.latents:
        latents = [standardise(z.float(), vae).to(device) for z in prompt.references.latents]
        method = prompt.references.method
        references, ids = reference_tokens(latents, method, height, width, batch, geometry)
    whole = placed.area is None and placed.mask is None
    return PreparedPrompt(
        name,
        expand(context.to(device), batch),
        expand(pooled.to(device), batch),
        prompt.guidance,
        height,
        width,
        image_ids(height, width, geometry=geometry).to(device),
        area,
        None if alone and whole else weights(placed, shape).to(device),
        prompt.region.background,
        math.inf if prompt.start <= 0 else sigma_at(table, prompt.start),
        -math.inf if prompt.end >= 1 else sigma_at(table, prompt.end),
        None if extra is None else extra.to(device),
        references,
        ids,
        prompt.references is not None and prompt.references.still,
        attention_mask(
            prompt.attention, context.shape[1], height, width, references, device, geometry
        ),
    )


def checked(prompt: Conditioning, transformer: FluxTransformer) -> tuple[Tensor, Tensor]:
    """Context (1 or B, N, D) and pooled (1 or B, P) of the widths and of the length that a
    transformer reads."""
    config, pooled = transformer.config, prompt.pooled
    if pooled is None or not config.vec_in_dim:  # of a family that looks at nothing of it
        pooled = prompt.context.new_zeros(1, config.vec_in_dim)
    for name, width, expected in (
        (
            "text's context" if not config.vec_in_dim else "T5 context",
            prompt.context.shape[-1],
            config.context_in_dim,
        ),
        ("CLIP vector", pooled.shape[-1], config.vec_in_dim),
    ):
        if width != expected:
            raise ValueError(
                f"the {name} is {width} wide, this transformer expects {expected}: "
                "the text encoders do not belong to it"
            )
    missing = family_of(transformer).context_length - prompt.context.shape[1]
    return F.pad(prompt.context, (0, 0, max(0, missing), 0)), pooled


def extra_of(
    prompt: Conditioning, transformer: FluxTransformer, shape: Sequence[int]
) -> Tensor | None:
    """What a model with a wider input reads beside latents of a shape (B, C, h, w)."""
    vae = family_of(transformer).vae
    extra = extra_channels(transformer.reads, family_of(transformer).tokens, vae)
    if extra and prompt.picture is None:
        log.warning("this model reads a picture beside the noise, and none was given")
    return extra_latents(extra, prompt.picture, prompt.mask, shape[0], shape[-2], shape[-1], vae)


def attention_mask(
    bias: AttentionBias | None,
    text_tokens: int,
    height: int,
    width: int,
    references: Tensor | None,
    device: torch.device,
    geometry: TokenGeometry = FLUX1_TOKENS,
) -> Tensor | None:
    """An attention bias (1 or B, T, T) for the tokens of a picture of ``height`` x ``width``
    latents, stretched bilinearly as ComfyUI does; references, behind them, are open to all."""
    if bias is None:
        return None
    values = bias.values if bias.values.ndim == 3 else bias.values[None]
    text = values.shape[-1] - bias.rows * bias.columns
    if text != text_tokens or values.shape[-1] != values.shape[-2]:
        raise ValueError(
            f"attention_mask is {tuple(values.shape)}, expected {text_tokens} text tokens and "
            f"{bias.rows}x{bias.columns} image tokens on both axes"
        )
    grid = token_grid(height, width, geometry)
    if grid != (bias.rows, bias.columns):
        is_bool = values.dtype == torch.bool
        source = (bias.rows, bias.columns)
        for axis in (1, 2):
            values = stretched(values.float(), axis, text, source, grid)
        values = values > 0.5 if is_bool else values
    if references is not None:
        more = references.shape[1]
        values = F.pad(values, (0, more, 0, more), value=values.dtype == torch.bool)
    return values.to(device)


def stretched(
    mask: Tensor, axis: int, text: int, source: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """A mask (B, T, T) with the image tokens on one axis interpolated from one grid to another."""
    mask = mask.movedim(axis, -1)
    words, image = mask[..., :text], mask[..., text:]
    image = F.interpolate(image.unflatten(-1, source), grid, mode="bilinear").flatten(-2)
    return torch.cat([words, image], dim=-1).movedim(-1, axis)


def control_condition(
    control: Control, prompt: PreparedPrompt, shape: Sequence[int], vae: VAEConfig
) -> Tensor:
    """A control's condition as its net reads it beside latents of a shape (B, C, h, w), in the
    prompt's area: tokens (B, L, c), or pixels (B, 3, H, W).

    Raises ``ValueError`` for a control picture of another size.
    """
    batch, height, width = shape[0], shape[-2], shape[-1]
    cond = control.cond.to(prompt.context.device)
    area, side = prompt.area or Area(height, width, 0, 0), vae.compression
    if control.net.config.hint:
        size = (height * side, width * side)
        pixels = F.interpolate(cond.float(), size, mode="bilinear")
        return expand(area.cut(pixels, side), batch)
    if cond.shape[-2:] != (height, width):
        raise ValueError(
            f"the control picture is {cond.shape[-1] * side}x{cond.shape[-2] * side} pixels, "
            f"the picture to draw {width * side}x{height * side}"
        )
    cond = standardise(cond.float(), vae)
    if control.net.wants_mask:
        mask = torch.ones_like(cond[:, :1]) if control.mask is None else control.mask.to(cond)
        mask = F.interpolate(mask, cond.shape[-2:], mode="area")
        # the public inpainting nets were trained with 1 where the picture is kept
        cond = torch.cat([cond, 1 - expand(mask, cond.shape[0])], dim=1)
    return expand(pack(area.cut(cond)), batch)
