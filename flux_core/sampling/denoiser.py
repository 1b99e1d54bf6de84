"""The model as a sampler sees it: guidance, prompts by region, ControlNets, wider inputs, masks.

    v = transformer(x_t, t);  picture = x_t - t v;   CFG: uncond + cfg (cond - uncond)

Latents are (B, 16, h, w) and standardised here, ``(z - 0.1159) * 0.3611``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..lora.apply import current_strengths
from ..models.families import family_of
from ..models.side_tokens import Keep, SideTokens
from ..models.transformer import ControlResiduals, FluxBody, FluxTransformer
from ..offload.modulations import PrecomputedModulations
from .adapters import AppliedAdapter, RunAdapters
from .conditioning import Conditioning, Control
from .differential import MaskBySteps
from .guidance import PLAIN_GUIDANCE, GuidanceOptions
from .inputs import model_inputs
from .latents import expand, pack, unpack
from .lora_factors import LoraFactors
from .prepared import (
    PreparedPrompt,
    control_condition,
    prepare_prompt,
    whole_contexts,
    within,
)
from .reading import Guiding, PromptReading, guiding_of, stretch_at
from .regions import Placed, background_weights, is_alone, opposites, place_prompt
from .samplers import Model
from .sigmas import SigmaTable
from .windows import Tiles, WindowReader


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
        *,
        options: GuidanceOptions = PLAIN_GUIDANCE,
        zero_sigma: float = math.inf,
        loras: LoraFactors | None = None,
        tiles: Tiles | None = None,
        keep: Keep = True,
        adapters: Sequence[AppliedAdapter] = (),
    ) -> None:
        """Above ``zero_sigma`` nothing is drawn: the velocity is 0. With ``keep`` side tokens keep
        what they can over the steps."""
        self.keep, self.cfg, self.table = keep, cfg, table
        self.options, self.zero_sigma = options, zero_sigma
        self.transformer, family = transformer, family_of(transformer)
        self.vae, self.geometry = family.vae, family.tokens
        positive = whole_contexts(positive, family)
        negative = None if negative is None else whole_contexts(negative, family)
        self.shape, self.device, self.loras = tuple(shape), device, loras
        self.controls = [control for control in controls if control.strength]
        #: where a picture is drawn in tiles
        self.reader: WindowReader | None = None
        if tiles is not None:
            about = (shape, family, device, transformer.dtype)
            self.reader = WindowReader(tiles, self.controls, *about)
        ours = [place_prompt(prompt, *shape[-2:]) for prompt in positive]
        theirs, own = [], len(ours)
        if negative is not None and cfg != 1.0:
            theirs = opposites([place_prompt(prompt, *shape[-2:]) for prompt in negative], ours)
            ours = opposites(ours, theirs)
        self.positive = self._prepared(ours, "positive")
        self.unguided = self._without_opposites(own, is_alone(positive))
        self.negative = self._prepared(theirs, "negative") or None
        #: each prompt's conditions of the controls, in their order
        self.conditions = {
            prompt.name: [control_condition(c, prompt, shape, self.vae) for c in self.controls]
            for prompt in self.prompts
            if not self._splits(prompt)
        }
        #: what changes over the run, of those prompts where something does
        self.changing = self._changing(negative)
        self.readings = {
            prompt.name: self._reading(prompt)
            for prompt in self.prompts
            if prompt.name in self.changing and not self._splits(prompt)
        }
        self.window_readings: dict[tuple[str, int, int], PromptReading] = {}
        self.adapters = RunAdapters(
            adapters, transformer, self.positive, self.negative or [], table, shape, device
        )
        self.bodies: list[FluxBody] = [transformer, *(c.net for c in self.controls)]
        self.precomputed: dict[FluxBody, list[PrecomputedModulations]] = {}

    def _prepared(self, placed: Sequence[Placed], name: str) -> list[PreparedPrompt]:
        alone = is_alone([entry.prompt for entry in placed])
        reader = self.reader
        prepared = [
            prepare_prompt(
                entry if reader is None else reader.without_attention(entry),
                f"{name} {number}",
                self.transformer,
                self.table,
                self.shape,
                self.device,
                alone,
                self.keep,
            )
            for number, entry in enumerate(placed)
        ]
        if reader is not None:
            for prompt, entry in zip(prepared, placed, strict=True):
                reader.add(prompt, entry)
        return prepared

    def _without_opposites(self, own: int, alone: bool) -> list[PreparedPrompt]:
        """The positive prompt where it is drawn alone: its ``own`` entries, without what stands
        beside areas of the negative one; ``alone`` where they are one for the whole picture."""
        if len(self.positive) == own:
            return self.positive
        whole = {"weight": None} if alone else {}
        return [replace(prompt, **whole) for prompt in self.positive[:own]]

    def _splits(self, prompt: PreparedPrompt) -> bool:
        """Whether a prompt is read in windows."""
        return self.reader is not None and self.reader.splits(prompt)

    def _changing(self, negative: Sequence[Conditioning] | None) -> dict[str, Guiding | None]:
        """The prompts of which other things are read at other steps, and what they are guided away
        from."""
        guiding = guiding_of(self.options, negative)
        changing: dict[str, Guiding | None] = {}
        if guiding is not None:
            changing = dict.fromkeys((prompt.name for prompt in self.positive), guiding)
        for prompt in self.prompts:
            if prompt.prompt.regional is not None:
                changing.setdefault(prompt.name, None)
        return changing

    def _reading(self, prompt: PreparedPrompt) -> PromptReading:
        guiding = self.changing[prompt.name]
        return PromptReading(prompt, self.transformer, self.table, self.shape, guiding)

    def _window_reading(self, prompt: PreparedPrompt) -> PromptReading | None:
        """What changes of a prompt in one of its windows; kept where it holds no masks."""
        if prompt.name not in self.changing:
            return None
        key = prompt.name, prompt.height, prompt.width
        reading = self.window_readings.get(key) or self._reading(prompt)
        if reading.without_masks:
            self.window_readings[key] = reading
        return reading

    @property
    def prompts(self) -> list[PreparedPrompt]:
        """All entries of both prompts."""
        return [*self.positive, *(self.negative or [])]

    def guided(self, sigma: float) -> bool:
        """Whether the negative prompt is drawn too."""
        span = (self.options.start, self.options.end)
        return self.negative is not None and within(self.table, *span, sigma)

    @property
    def largest(self) -> list[PreparedPrompt]:
        """All entries as the transformer reads them at most."""
        reader = self.reader
        return [
            prompt if reader is None or not reader.splits(prompt) else reader.largest(prompt)
            for prompt in self.prompts
        ]

    def drawn(self, sigma: float) -> list[PreparedPrompt]:
        """The entries that a step at a sigma reads."""
        if sigma > self.zero_sigma or sigma <= 0:
            return []
        prompts = self.prompts if self.guided(sigma) else self.unguided
        return [prompt for prompt in prompts if prompt.active(sigma)]

    def reads(self, sigma: float) -> tuple[Hashable, ...]:
        """What tells what a step at a sigma reads from what others do, empty for nothing."""
        return tuple(
            (
                prompt.name,
                stretch_at(prompt.prompt, self.changing.get(prompt.name), self.table, sigma),
                self.adapters.counting(sigma, prompt.name),
            )
            for prompt in self.drawn(sigma)
        )

    @property
    def sides(self) -> list[SideTokens]:
        """References that attend to themselves alone, of all prompts."""
        return [prompt.side for prompt in self.prompts if prompt.side is not None]

    @contextmanager
    def precompute_modulations(self, sigmas: Tensor) -> Iterator[None]:
        """Modulations for all these sigmas (steps + 1,) are computed now; afterwards they are live
        again."""
        try:
            for body in self.bodies:
                # vectors of one length are computed at once
                by_rows: dict[int, dict[tuple[float, str], Tensor]] = {}
                for sigma in sigmas.tolist():
                    if self.loras is not None:
                        self.loras.set_vectors([sigma])
                    for prompt in self.drawn(sigma):
                        vec = prompt.vector(body, sigma)
                        by_rows.setdefault(len(vec), {})[sigma, prompt.name] = vec
                self.precomputed[body] = [
                    PrecomputedModulations(body, vecs, self._preparing())
                    for vecs in by_rows.values()
                ]
            for prompt in self.prompts:
                if prompt.side is not None:
                    # alone in its group: its bits must not depend on what is computed with it
                    still = {(0.0, prompt.name): prompt.vector(self.transformer, 0.0)}
                    prompt.side.source = PrecomputedModulations(self.transformer, still)
                    prompt.side.source.select((0.0, prompt.name))
            yield
        finally:
            if self.loras is not None:
                self.loras.clear()
            self.precomputed = {}
            for body in self.bodies:
                body.precomputed = None
            for prompt in self.prompts:
                if prompt.side is not None:
                    prompt.side.clear()
                    prompt.side.source = None

    def _preparing(self) -> Callable[[Sequence[tuple[float, str]], int], None] | None:
        """What says how LoRAs count in modulations of some sigmas, each of so many rows."""
        loras = self.loras
        if loras is None:
            return None
        return lambda keys, rows: loras.set_vectors([sigma for sigma, _ in keys], rows)

    def _residuals(
        self, sigma: float, prompt: PreparedPrompt, inputs: dict[str, Any]
    ) -> list[ControlResiduals]:
        beside_noise = []
        conditions = prompt.conditions
        if conditions is None:
            conditions = self.conditions[prompt.name]
        for control, cond in zip(self.controls, conditions, strict=True):
            if within(self.table, control.start, control.end, sigma):
                residuals = control.net(cond=cond, mode=control.mode, **inputs)
                beside_noise.append(scaled(residuals, control.strength))
        return beside_noise

    def _seen(self, x: Tensor, sigma: float, prompt: PreparedPrompt) -> Tensor:
        """The velocity (B, C, h, w) of x in the prompt's area."""
        if self.reader is not None and self.reader.splits(prompt):
            return self._in_windows(self.reader, x, sigma, prompt)
        return self._velocity(x, sigma, prompt, self.readings.get(prompt.name))

    def _velocity(
        self, x: Tensor, sigma: float, prompt: PreparedPrompt, reading: PromptReading | None
    ) -> Tensor:
        """The velocity (B, C, h, w) of x in one call of the model."""
        for body, groups in self.precomputed.items():
            known = (group for group in groups if group.select((sigma, prompt.name)))
            body.precomputed = next(known, None)
        timesteps, pooled, guidance = prompt.vector_inputs(sigma)
        about = (prompt.img_ids, prompt.context, pooled, timesteps, guidance, self.geometry)
        inputs = model_inputs(x, *about)
        # a ControlNet reads the noisy latents alone, whatever stands beside them
        control = self._residuals(sigma, prompt, inputs)
        extra = prompt.beside_noise(sigma)
        if extra is not None:
            inputs["img"] = pack(torch.cat([x, extra], dim=1), self.geometry)
        tokens = inputs["img"].shape[1]
        if prompt.references is not None and prompt.reference_ids is not None:
            inputs["img"] = torch.cat([inputs["img"], prompt.references], dim=1)
            inputs["img_ids"] = torch.cat([inputs["img_ids"], prompt.reference_ids])
        inputs |= prompt.options
        if prompt.side is not None:
            prompt.side.depend_on(current_strengths(self.transformer))
        if reading is not None:
            inputs |= reading.at(sigma)
        tokens_read = inputs["txt"].shape[1], inputs["img"].shape[1]
        if (adapters := self.adapters.at(sigma, prompt, tokens_read[0])) is not None:
            inputs["adapters"] = adapters
        if self.loras is not None:
            self.loras.set_call(sigma, prompt, *tokens_read)
        out = self.transformer(**inputs, control=control)
        return unpack(out[:, :tokens].float(), prompt.height, prompt.width, self.geometry)

    def _in_windows(
        self, reader: WindowReader, x: Tensor, sigma: float, prompt: PreparedPrompt
    ) -> Tensor:
        """``_seen`` of a prompt that is read in windows; 0 where nothing of it is drawn."""
        velocity = torch.zeros_like(x)
        for window in reader.windows(prompt, sigma):
            if reader.tiles.between is not None:
                reader.tiles.between()
            part = reader.prompt(prompt, window)
            seen = self._velocity(window.area.cut(x), sigma, part, self._window_reading(part))
            into = window.area.cut(velocity)
            into += seen * window.weight.to(x)
        return velocity

    def picture(
        self, x: Tensor, sigma: Tensor, now: float, prompts: Sequence[PreparedPrompt]
    ) -> Tensor:
        """The picture (B, C, h, w) that all entries of a prompt see together; ``now`` is sigma."""
        if len(prompts) == 1 and prompts[0].weight is None:
            return x - sigma * self._seen(x, now, prompts[0])
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
            seen = part - sigma * self._seen(part, now, prompt)
            for whole, added in ((picture, seen * weight), (total, weight)):
                into = whole if prompt.area is None else prompt.area.cut(whole)
                into += added
        return torch.where(total > 0, picture / total.clamp_min(1e-37), 0.0)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        now = float(sigma)
        if now > self.zero_sigma:
            return x
        if self.negative is None or not self.guided(now):
            return self.picture(x, sigma, now, self.unguided)
        picture = self.picture(x, sigma, now, self.positive)
        other = self.picture(x, sigma, now, self.negative)
        return self.options.combine(x, picture, other, self.cfg)


def keep_outside(
    model: Model,
    mask: Tensor,
    start: Tensor,
    noise: Tensor,
    by_steps: MaskBySteps | None = None,
) -> Model:
    """A model that draws inside the mask and gives back ``start`` outside of it.

    Args:
        mask: (1 or B, 1, h, w) in [0, 1], 1 where to draw.
        start, noise: (B, 16, h, w), standardised latents and standard normal noise.
        by_steps: what the mask is at each step; None is the same at all.
    """
    whole = expand(mask, start.shape[0])

    def masked(x: Tensor, sigma: Tensor) -> Tensor:
        mask = whole if by_steps is None else by_steps(whole, sigma)
        kept = sigma * noise + (1 - sigma) * start
        return model(x * mask + kept * (1 - mask), sigma) * mask + start * (1 - mask)

    return masked
