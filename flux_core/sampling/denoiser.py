"""The model as a sampler sees it: guidance, ControlNets, wider inputs, masks.

    v = transformer(x_t, t);  picture = x_t - t v;   CFG: uncond + cfg (cond - uncond)

Latents are (B, 16, h, w) and standardised here, ``(z - 0.1159) * 0.3611``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.families import family_of
from ..models.transformer import ControlResiduals, FluxBody, FluxTransformer
from ..offload.modulations import PrecomputedModulations
from .concat import extra_channels, extra_latents
from .conditioning import Conditioning, Control
from .inputs import model_inputs
from .latents import (
    expand,
    image_ids,
    pack,
    standardise,
    unpack,
)
from .samplers import Model
from .sigmas import SigmaTable

log = logging.getLogger(__name__)


def scaled(residuals: ControlResiduals, strength: float) -> ControlResiduals:
    return ControlResiduals(
        [r * strength for r in residuals.double],
        [r * strength for r in residuals.single],
        residuals.cyclic,
    )


class Denoiser:
    """The model that a sampler calls: x (B, 16, h, w) and a sigma to the picture it hides."""

    def __init__(
        self,
        transformer: FluxTransformer,
        positive: Conditioning,
        negative: Conditioning | None,
        cfg: float,
        controls: Sequence[Control],
        table: SigmaTable,
        shape: Sequence[int],
        device: torch.device,
    ) -> None:
        self.transformer, self.cfg, self.table = transformer, cfg, table
        self.vae = family_of(transformer).vae
        self.batch, self.height, self.width = shape[0], shape[-2], shape[-1]
        self.device = device
        self.img_ids = image_ids(self.height, self.width).to(device)
        self.positive = self._on_device(positive)
        self.negative = None if negative is None or cfg == 1.0 else self._on_device(negative)
        #: what a model with a wider input reads beside the noise, by the prompt's name
        self.extra = {"positive": self._extra(positive)}
        if self.negative is not None and negative is not None:
            self.extra["negative"] = self._extra(negative)
        self.controls = [(c, self._packed(c)) for c in controls if c.strength]
        self.bodies: list[FluxBody] = [transformer, *(c.net for c, _ in self.controls)]
        self.precomputed: list[PrecomputedModulations] = []

    @contextmanager
    def precompute_modulations(self, sigmas: Tensor) -> Iterator[None]:
        """Modulations for all these sigmas (steps + 1,) are computed now; afterwards they are live
        again."""
        prompts = {"positive": self.positive, "negative": self.negative}
        try:
            for body in self.bodies:
                vecs = {
                    (sigma, name): body.embed_vector(*self._vector_inputs(sigma, c))
                    for sigma in sigmas.tolist()
                    for name, c in prompts.items()
                    if c is not None and sigma > 0
                }
                self.precomputed.append(PrecomputedModulations(body, vecs))
            yield
        finally:
            self.precomputed = []
            for body in self.bodies:
                body.precomputed = None

    def _vector_inputs(self, sigma: float, c: Conditioning) -> tuple[Tensor, Tensor, Tensor]:
        """Timesteps, pooled text and guidance of a whole batch."""
        timesteps = torch.full((self.batch,), sigma, device=self.device)
        guidance = torch.full((self.batch,), c.guidance, device=self.device)
        assert c.pooled is not None  # since it is on the device
        return timesteps, c.pooled, guidance

    def _on_device(self, prompt: Conditioning) -> Conditioning:
        config = self.transformer.config
        pooled = prompt.pooled
        if pooled is None:  # of a family that reads none, and looks at nothing of it
            pooled = prompt.context.new_zeros(1, config.vec_in_dim)
        for name, width, expected in (
            ("T5 context", prompt.context.shape[-1], config.context_in_dim),
            ("CLIP vector", pooled.shape[-1], config.vec_in_dim),
        ):
            if width != expected:
                raise ValueError(
                    f"the {name} is {width} wide, this transformer expects {expected}: "
                    "the text encoders do not belong to it"
                )
        return replace(
            prompt,
            context=expand(prompt.context.to(self.device), self.batch),
            pooled=expand(pooled.to(self.device), self.batch),
        )

    def _extra(self, c: Conditioning) -> Tensor | None:
        extra = extra_channels(self.transformer.reads)
        if extra and c.picture is None:
            log.warning("this model reads a picture beside the noise, and none was given")
        beside_noise = extra_latents(
            extra, c.picture, c.mask, self.batch, self.height, self.width, self.vae
        )
        return None if beside_noise is None else beside_noise.to(self.device)

    def _packed(self, control: Control) -> Tensor:
        """A control's condition as its net reads it."""
        cond = control.cond.to(self.device)
        if control.net.config.hint:
            side = self.vae.compression
            size = (self.height * side, self.width * side)
            return expand(F.interpolate(cond.float(), size, mode="bilinear"), self.batch)
        if cond.shape[-2:] != (self.height, self.width):
            raise ValueError(
                f"the control picture is {cond.shape[-1] * 8}x{cond.shape[-2] * 8} pixels, "
                f"the picture to draw {self.width * 8}x{self.height * 8}"
            )
        cond = standardise(cond.float(), self.vae)
        if control.net.wants_mask:
            mask = torch.ones_like(cond[:, :1]) if control.mask is None else control.mask.to(cond)
            mask = F.interpolate(mask, cond.shape[-2:], mode="area")
            # the public inpainting nets were trained with 1 where the picture is kept
            cond = torch.cat([cond, 1 - expand(mask, cond.shape[0])], dim=1)
        return expand(pack(cond), self.batch)

    def _residuals(self, sigma: float, inputs: dict[str, Tensor]) -> list[ControlResiduals]:
        beside_noise = []
        for control, cond in self.controls:
            first = 1.0 if control.start <= 0 else self._sigma_at(control.start)
            last = 0.0 if control.end >= 1 else self._sigma_at(control.end)
            if last <= sigma <= first:
                residuals = control.net(cond=cond, mode=control.mode, **inputs)
                beside_noise.append(scaled(residuals, control.strength))
        return beside_noise

    def _sigma_at(self, share: float) -> float:
        return float(self.table.sigma(torch.tensor(1.0 - share)))

    def _velocity(self, x: Tensor, sigma: float, c: Conditioning, name: str) -> Tensor:
        for body, precomputed in zip(self.bodies, self.precomputed, strict=False):
            body.precomputed = precomputed if precomputed.select((sigma, name)) else None
        timesteps, pooled, guidance = self._vector_inputs(sigma, c)
        extra = self.extra[name]
        latents = x if extra is None else torch.cat([x, extra], dim=1)
        inputs = model_inputs(latents, self.img_ids, c.context, pooled, timesteps, guidance)
        control = self._residuals(sigma, inputs)
        tokens = self.transformer(**inputs, control=control)
        return unpack(tokens.float(), self.height, self.width)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        now = float(sigma)
        picture = x - sigma * self._velocity(x, now, self.positive, "positive")
        if self.negative is None:
            return picture
        other = x - sigma * self._velocity(x, now, self.negative, "negative")
        return other + self.cfg * (picture - other)


def keep_outside(model: Model, mask: Tensor, start: Tensor, noise: Tensor) -> Model:
    """A model that draws inside the mask and gives back ``start`` outside of it.

    Args:
        mask: (1 or B, 1, h, w) in [0, 1], 1 where to draw.
        start, noise: (B, 16, h, w), standardised latents and standard normal noise.
    """
    mask = expand(mask, start.shape[0])

    def masked(x: Tensor, sigma: Tensor) -> Tensor:
        kept = sigma * noise + (1 - sigma) * start
        return model(x * mask + kept * (1 - mask), sigma) * mask + start * (1 - mask)

    return masked
