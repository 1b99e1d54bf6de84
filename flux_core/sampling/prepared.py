"""A prompt made ready for one run: on the device, in the size of its area, with what is beside it.

Axis letters: B pictures, N text tokens, C latent channels, h and w latents, R reference tokens.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.config import VAEConfig
from ..models.families import family_of
from ..models.family import Family
from ..models.geometry import TokenGeometry
from ..models.side_tokens import Keep, SideTokens
from ..models.transformer import FluxBody, FluxTransformer
from .attention_masks import added_up, attention_mask, open_to, padding_mask
from .concat import (
    MASKED_AND_CONTROL,
    NO_CONTROL,
    PICTURE,
    PICTURE_AND_MASK,
    channels_beside,
    extra_latents,
)
from .conditioning import Conditioning, Control, ControlPicture
from .latents import expand, image_ids, image_tokens, pack, standardise
from .references import reference_tokens
from .regions import Area, Placed, weights
from .sigmas import SigmaTable

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """One entry of a prompt, for latents (B, C, h, w) of its area.

    ``weight`` (B, 1, h, w) is what it counts, None where it is alone; ``first`` and ``last`` are
    the sigmas between which it does. ``extra`` (B, E, h, w) stands beside the noise, and in its
    place ``extra_outside`` where the sigma is outside of ``control_span``, from its first to its
    last. ``references`` are tokens (B, R, p^2 C) with positions ``reference_ids`` (R, axes);
    ``side`` are those that attend to themselves alone. ``prompt`` is what it was made of.
    """

    name: str
    prompt: Conditioning
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
    extra_outside: Tensor | None = None
    control_span: tuple[float, float] = (math.inf, -math.inf)
    #: of the controls, in one window of a picture that is drawn in tiles
    conditions: Sequence[Tensor] | None = None
    side: SideTokens | None = None

    def beside_noise(self, sigma: float) -> Tensor | None:
        """What stands beside the noise at a sigma, (B, E, h, w)."""
        first, last = self.control_span
        if self.extra_outside is None or last <= sigma <= first:
            return self.extra
        return self.extra_outside

    def active(self, sigma: float) -> bool:
        """Whether it counts at a sigma."""
        return self.last <= sigma <= self.first

    @property
    def batch(self) -> int:
        return len(self.context)

    @property
    def tokens(self) -> int:
        """Image tokens that the transformer reads, with those of references."""
        behind = 0 if self.references is None else self.references.shape[1]
        return len(self.img_ids) + behind

    @property
    def still_tokens(self) -> int:
        """Tokens that are modulated as at time 0."""
        return 0 if self.references is None or not self.still else self.references.shape[1]

    @property
    def options(self) -> dict[str, Any]:
        """Further arguments of the transformer's call."""
        options: dict[str, Any] = {}
        if self.mask is not None:
            options["attention_mask"] = self.mask
        if self.still_tokens:
            options["still_tokens"] = self.still_tokens
        if self.side is not None:
            options["side"] = self.side
        return options

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


def span_of(table: SigmaTable, start: float, end: float) -> tuple[float, float]:
    """The first and the last sigma of a span of the schedule; it has no bound at the schedule's
    own ends."""
    first = math.inf if start <= 0 else sigma_at(table, start)
    return first, -math.inf if end >= 1 else sigma_at(table, end)


def within(table: SigmaTable, start: float, end: float, sigma: float) -> bool:
    """Whether a sigma lies in a span of the schedule, both ends included."""
    return sigma_at(table, end) <= sigma <= sigma_at(table, start)


def prepare_prompt(
    placed: Placed,
    name: str,
    transformer: FluxTransformer,
    table: SigmaTable,
    shape: Sequence[int],
    device: torch.device,
    alone: bool,
    keep: Keep = True,
) -> PreparedPrompt:
    """An entry ready for latents of a shape (B, C, h, w); ``alone`` where there is no other,
    ``keep`` whether and where side tokens keep what they can over the steps.

    Raises ``ValueError`` where the text encoders do not belong to the transformer.
    """
    prompt, area = placed.prompt, placed.area
    batch, height, width = shape[0], shape[-2], shape[-1]
    vae, geometry = family_of(transformer).vae, family_of(transformer).tokens
    context, pooled = checked(prompt, transformer)
    extra, outside = extra_of(prompt, transformer, shape, warn=device.type != "meta")
    if area is not None:
        extra = None if extra is None else area.cut(extra)
        outside = None if outside is None else area.cut(outside)
        height, width = area.height, area.width
    references = ids = side = None
    aside = prompt.references is not None and prompt.references.aside
    if prompt.references is not None and prompt.references.latents:
        latents = [standardise(z.float(), vae).to(device) for z in prompt.references.latents]
        method = prompt.references.method
        references, ids = reference_tokens(latents, method, height, width, batch, geometry)
        refuse_references(transformer)
    if aside and references is not None and ids is not None:
        side, references, ids = SideTokens(references, ids.to(device), keep), None, None
    behind = 0 if references is None else references.shape[1]
    side_tokens = 0 if side is None else side.count
    whole = placed.area is None and placed.mask is None
    return PreparedPrompt(
        name,
        prompt,
        expand(context.to(device), batch),
        expand(pooled.to(device), batch),
        prompt.guidance,
        height,
        width,
        image_ids(height, width, geometry=geometry).to(device),
        area,
        None if alone and whole else weights(placed, shape).to(device),
        prompt.region.background,
        *span_of(table, prompt.start, prompt.end),
        None if extra is None else extra.to(device),
        references,
        ids,
        prompt.references is not None and prompt.references.still,
        own_mask(prompt, height, width, behind, side_tokens, device, transformer.dtype, geometry),
        None if outside is None else outside.to(device),
        control_span(prompt.control, table),
        side=side,
    )


def refuse_references(transformer: FluxTransformer) -> None:
    """Raise ``ValueError`` for a model that takes no references."""
    if channels_beside(transformer):
        raise ValueError(
            "this transformer reads a picture beside the noise and takes no reference latents: "
            "those are for FLUX.1 Kontext and dev"
        )


def own_mask(
    prompt: Conditioning,
    height: int,
    width: int,
    behind: int,
    side_tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    geometry: TokenGeometry,
) -> Tensor | None:
    """What a prompt's own text may read and be read by, (1 or B, T or 1, T), for a picture of
    ``height`` x ``width`` latents, with so many tokens of references ``behind`` it, and beside
    it those that are read and read none of the others."""
    text = prompt.context.shape[1]
    bias = attention_mask(prompt.attention, text, height, width, behind, device, dtype, geometry)
    others = image_tokens(height, width, geometry=geometry) + behind + side_tokens
    return added_up([open_to(bias, side_tokens), padding_mask(prompt.text_mask, others, device)])


def checked(prompt: Conditioning, transformer: FluxTransformer) -> tuple[Tensor, Tensor]:
    """Context (1 or B, N, D) and pooled (1 or B, P) of the widths that a transformer reads."""
    config, pooled = transformer.config, prompt.pooled
    if prompt.text_mask is not None and prompt.text_mask.shape[-1] != prompt.context.shape[1]:
        raise ValueError(
            f"text_mask is {tuple(prompt.text_mask.shape)}, expected one for each of "
            f"{prompt.context.shape[1]} tokens"
        )
    if pooled is None or not family_of(transformer).needs_pooled:  # nothing of it is looked at
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
    return prompt.context, pooled


def whole_contexts(prompts: Sequence[Conditioning], family: Family) -> list[Conditioning]:
    """Prompts as ``whole_context`` has each."""
    return [whole_context(prompt, family) for prompt in prompts]


def whole_context(prompt: Conditioning, family: Family) -> Conditioning:
    """A prompt, and those of its regions, as long as a family reads them at least: zeros stand in
    front, as the host has them."""
    missing = family.context_length - prompt.context.shape[1]
    if prompt.regional is not None and family.context_length:
        regions = tuple(whole_context(region, family) for region in prompt.regional.prompts)
        prompt = replace(prompt, regional=replace(prompt.regional, prompts=regions))
    if missing <= 0:
        return prompt
    mask, bias = prompt.text_mask, prompt.attention
    if mask is not None:
        mask = F.pad(mask, (missing, 0), value=True)
    if bias is not None:  # which leaves them as open as they are without one
        value = bias.values.dtype == torch.bool
        bias = replace(bias, values=F.pad(bias.values, (missing, 0, missing, 0), value=value))
    context = F.pad(prompt.context, (0, 0, missing, 0))
    return replace(prompt, context=context, text_mask=mask, attention=bias)


def extra_of(
    prompt: Conditioning, transformer: FluxTransformer, shape: Sequence[int], warn: bool = True
) -> tuple[Tensor | None, Tensor | None]:
    """What a model with a wider input reads beside latents of a shape (B, C, h, w), and what while
    a control picture does not count, where that is something else.

    Raises ``ValueError`` for a control picture that the model does not read.
    """
    extra, control = channels_beside(transformer), prompt.control
    if warn and extra in (PICTURE, PICTURE_AND_MASK) and prompt.picture is None:
        log.warning("this model reads a picture beside the noise, and none was given")
    if control is not None and extra != MASKED_AND_CONTROL:
        raise ValueError(NO_CONTROL)
    vae = family_of(transformer).vae
    about = (extra, prompt.picture, prompt.mask, shape[0], shape[-2], shape[-1], vae)
    if control is None:
        return extra_latents(*about), None
    controlled = extra_latents(*about, control.latents, control.strength)
    return controlled, None if control.whole else extra_latents(*about)


def control_span(control: ControlPicture | None, table: SigmaTable) -> tuple[float, float]:
    """The first and the last sigma at which a control picture counts."""
    if control is None or control.whole:
        return math.inf, -math.inf
    return span_of(table, control.start, control.end)


def control_condition(
    control: Control, prompt: PreparedPrompt, shape: Sequence[int], vae: VAEConfig
) -> Tensor:
    """A control's condition as its net reads it beside latents of a shape (B, C, h, w), in the
    prompt's area: tokens (B, L, c), or pixels (B, 3, H, W).

    Raises ``ValueError`` for a control picture of another size.
    """
    device = prompt.context.device
    area = prompt.area or Area(shape[-2], shape[-1], 0, 0)
    whole = whole_condition(control, shape, vae, device)
    return cut_condition(control, whole, area, vae, shape[0], device)


def check_condition_size(control: Control, shape: Sequence[int], vae: VAEConfig) -> None:
    """Raise ``ValueError`` for a condition of another size than latents of a shape (B, C, h, w),
    whose net reads latents."""
    cond, side, (height, width) = control.cond, vae.compression, shape[-2:]
    if not control.net.config.hint and cond.shape[-2:] != (height, width):
        raise ValueError(
            f"the control picture is {cond.shape[-1] * side}x{cond.shape[-2] * side} pixels, "
            f"the picture to draw {width * side}x{height * side}"
        )


def whole_condition(
    control: Control, shape: Sequence[int], vae: VAEConfig, device: torch.device
) -> Tensor:
    """A control's condition for latents of a shape (B, C, h, w): (1 or B, c, h, w) with what its
    net reads beside them, or pixels (1 or B, 3, H, W); errors as ``control_condition``."""
    height, width = shape[-2], shape[-1]
    cond, side = control.cond.to(device), vae.compression
    if control.net.config.hint:
        return F.interpolate(cond.float(), (height * side, width * side), mode="bilinear")
    check_condition_size(control, shape, vae)
    cond = standardise(cond.float(), vae)
    if control.net.wants_mask:
        mask = torch.ones_like(cond[:, :1]) if control.mask is None else control.mask.to(cond)
        mask = F.interpolate(mask, cond.shape[-2:], mode="area")
        # the public inpainting nets were trained with 1 where the picture is kept
        cond = torch.cat([cond, 1 - expand(mask, cond.shape[0])], dim=1)
    return cond


def cut_condition(
    control: Control, whole: Tensor, area: Area, vae: VAEConfig, batch: int, device: torch.device
) -> Tensor:
    """A part of ``whole_condition`` (1 or B, c, h, w) as the net reads it: tokens (B, L, c), or
    pixels (B, 3, H, W)."""
    if control.net.config.hint:
        return expand(area.cut(whole, vae.compression).to(device), batch)
    return expand(pack(area.cut(whole).to(device)), batch)
