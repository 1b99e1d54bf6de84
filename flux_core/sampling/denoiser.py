"""The model as a sampler sees it: guidance, prompts by region, ControlNets, wider inputs, masks.

    v = transformer(x_t, t);  picture = x_t - t v;   CFG: uncond + cfg (cond - uncond)

Latents are (B, 16, h, w) and standardised here, ``(z - 0.1159) * 0.3611``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..models.families import family_of
from ..models.transformer import ControlResiduals, FluxBody, FluxTransformer
from ..offload.modulations import PrecomputedModulations
from .conditioning import Conditioning, Control
from .inputs import model_inputs
from .latents import expand, unpack
from .prepared import PreparedPrompt, control_condition, prepare_prompt, sigma_at
from .regions import Placed, background_weights, is_alone, opposites, place_prompt
from .samplers import Model
from .sigmas import SigmaTable


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
        positive: Sequence[Conditioning],
        negative: Sequence[Conditioning] | None,
        cfg: float,
        controls: Sequence[Control],
        table: SigmaTable,
        shape: Sequence[int],
        device: torch.device,
    ) -> None:
        self.transformer, self.cfg, self.table = transformer, cfg, table
        self.vae, self.geometry = family_of(transformer).vae, family_of(transformer).tokens
        self.shape, self.device = tuple(shape), device
        self.controls = [control for control in controls if control.strength]
        size = (shape[-2], shape[-1])
        ours = [place_prompt(prompt, *size) for prompt in positive]
        theirs = []
        if negative is not None and cfg != 1.0:
            theirs = [place_prompt(prompt, *size) for prompt in negative]
            theirs = opposites(theirs, ours)
            ours = opposites(ours, theirs)
        self.positive = self._prepared(ours, "positive")
        self.negative = self._prepared(theirs, "negative") or None
        #: each prompt's conditions of the controls, in their order
        self.conditions = {
            prompt.name: [control_condition(c, prompt, shape, self.vae) for c in self.controls]
            for prompt in self.prompts
        }
        self.bodies: list[FluxBody] = [transformer, *(c.net for c in self.controls)]
        self.precomputed: dict[FluxBody, list[PrecomputedModulations]] = {}

    def _prepared(self, placed: Sequence[Placed], name: str) -> list[PreparedPrompt]:
        alone = is_alone([entry.prompt for entry in placed])
        return [
            prepare_prompt(
                entry,
                f"{name} {number}",
                self.transformer,
                self.table,
                self.shape,
                self.device,
                alone,
            )
            for number, entry in enumerate(placed)
        ]

    @property
    def prompts(self) -> list[PreparedPrompt]:
        """All entries of both prompts."""
        return [*self.positive, *(self.negative or [])]

    @contextmanager
    def precompute_modulations(self, sigmas: Tensor) -> Iterator[None]:
        """Modulations for all these sigmas (steps + 1,) are computed now; afterwards they are live
        again."""
        try:
            for body in self.bodies:
                # vectors of one length are computed at once
                by_rows: dict[int, dict[tuple[float, str], Tensor]] = {}
                for sigma in sigmas.tolist():
                    for prompt in self.prompts:
                        if sigma > 0 and prompt.active(sigma):
                            vec = prompt.vector(body, sigma)
                            by_rows.setdefault(len(vec), {})[sigma, prompt.name] = vec
                self.precomputed[body] = [
                    PrecomputedModulations(body, vecs) for vecs in by_rows.values()
                ]
            yield
        finally:
            self.precomputed = {}
            for body in self.bodies:
                body.precomputed = None

    def _residuals(
        self, sigma: float, prompt: PreparedPrompt, inputs: dict[str, Any]
    ) -> list[ControlResiduals]:
        beside_noise = []
        conditions = self.conditions[prompt.name]
        for control, cond in zip(self.controls, conditions, strict=True):
            first = 1.0 if control.start <= 0 else sigma_at(self.table, control.start)
            last = 0.0 if control.end >= 1 else sigma_at(self.table, control.end)
            if last <= sigma <= first:
                residuals = control.net(cond=cond, mode=control.mode, **inputs)
                beside_noise.append(scaled(residuals, control.strength))
        return beside_noise

    def _velocity(self, x: Tensor, sigma: float, prompt: PreparedPrompt) -> Tensor:
        """The velocity (B, C, h, w) of x in the prompt's area."""
        for body, groups in self.precomputed.items():
            known = (group for group in groups if group.select((sigma, prompt.name)))
            body.precomputed = next(known, None)
        timesteps, pooled, guidance = prompt.vector_inputs(sigma)
        latents = x if prompt.extra is None else torch.cat([x, prompt.extra], dim=1)
        inputs = model_inputs(
            latents,
            prompt.img_ids,
            prompt.context,
            pooled,
            timesteps,
            guidance,
            self.geometry,
        )
        control = self._residuals(sigma, prompt, inputs)
        tokens = inputs["img"].shape[1]
        if prompt.references is not None and prompt.reference_ids is not None:
            if prompt.references.shape[-1] != inputs["img"].shape[-1]:
                raise ValueError(
                    "this transformer reads a picture beside the noise and takes no reference "
                    "latents: those are for FLUX.1 Kontext and dev"
                )
            inputs["img"] = torch.cat([inputs["img"], prompt.references], dim=1)
            inputs["img_ids"] = torch.cat([inputs["img_ids"], prompt.reference_ids])
        if prompt.mask is not None:
            inputs["attention_mask"] = prompt.mask
        if prompt.still_tokens:
            inputs["still_tokens"] = prompt.still_tokens
        out = self.transformer(**inputs, control=control)
        return unpack(out[:, :tokens].float(), prompt.height, prompt.width, self.geometry)

    def _picture(self, x: Tensor, sigma: Tensor, prompts: Sequence[PreparedPrompt]) -> Tensor:
        """The picture (B, C, h, w) that all entries of a prompt see together."""
        now = float(sigma)
        if len(prompts) == 1 and prompts[0].weight is None:
            return x - sigma * self._velocity(x, now, prompts[0])
        active = [prompt for prompt in prompts if prompt.active(now)]
        front = [(p.area, p.weight) for p in active if p.weight is not None and not p.background]
        picture, total = torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for prompt in active:
            weight = prompt.weight
            assert weight is not None
            if prompt.background:
                weight = background_weights(front, self.shape).to(x)
                weight = weight if prompt.area is None else prompt.area.cut(weight)
                if not bool(weight.any()):
                    continue
            part = x if prompt.area is None else prompt.area.cut(x)
            seen = part - sigma * self._velocity(part, now, prompt)
            for whole, added in ((picture, seen * weight), (total, weight)):
                into = whole if prompt.area is None else prompt.area.cut(whole)
                into += added
        return torch.where(total > 0, picture / total.clamp_min(1e-37), 0.0)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        picture = self._picture(x, sigma, self.positive)
        if self.negative is None:
            return picture
        other = self._picture(x, sigma, self.negative)
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
