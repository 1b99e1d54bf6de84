"""What is to be drawn, whoever asks for it: a ``DrawRequest``, which ``run.draw`` draws.

Latents are (B, 16, h, w): raw VAE latents outside, standardised inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ..bounds import check_number
from ..lora import LoraStack, lora_uses
from ..lora.apply import counting
from ..models.config import VAEConfig
from ..models.families import family_of
from ..models.side_tokens import Keep
from ..models.transformer import FluxTransformer
from ..offload import OffloadPolicy, Work
from .adapters import AppliedAdapter, check_adapter
from .conditioning import Conditioning, Control
from .denoiser import Denoiser
from .differential import MaskBySteps, check_differential, mask_by_steps
from .fitting import check_condition
from .kept import work_of_keeping
from .lora_factors import LoraFactors, lora_factors
from .picture_work import picture_work
from .reading import guiding_of
from .samplers import SAMPLERS
from .settings import NoiseSchedule, SamplingSettings
from .sigmas import check_sigmas
from .tiles import Tiling, check_tiling
from .windows import Tiles

#: Where a run is counted.
META = torch.device("meta")


@dataclass(frozen=True, eq=False)
class DrawRequest:
    """All that decides what is drawn, whoever asks for it.

    Args:
        positive: one prompt, or several with their regions and spans.
        latents: raw latents (B, 16, h, w) to start from; they matter where the first sigma is below
            1 or a mask keeps a part.
        negative: read where ``settings.cfg`` is not 1, and by NAG; one or several as ``positive``.
        mask: (1 or B, 1, h, w) in [0, 1], 1 where to draw and 0 where to keep ``latents``.
        loras: with their strengths, or as ``LoraUse``, beside the transformer's layers for this
            run.
        tiles: windows in which a large picture is drawn; one that is no larger is drawn whole.
        differential: a grey ``mask`` says from which step on a place is kept (differential
            diffusion), at a strength from 0 to 1 as ComfyUI has it; None blends by the mask.
        between: called before each window is read; an exception that it raises ends the run.
        adapters: IP-Adapters with their pictures.

    Raises ``ValueError`` for latents of another VAE, for prompts that the transformer's family
    does not read, and for adapters of another transformer.
    """

    transformer: FluxTransformer
    positive: Conditioning | Sequence[Conditioning]
    latents: Tensor
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    negative: Conditioning | Sequence[Conditioning] | None = None
    mask: Tensor | None = None
    controls: Sequence[Control] = ()
    loras: LoraStack = ()
    tiles: Tiling | None = None
    differential: float | None = None
    between: Callable[[], None] | None = None
    adapters: Sequence[AppliedAdapter] = ()

    def __post_init__(self) -> None:
        family = family_of(self.transformer)
        if self.latents.shape[1] != family.vae.latent_channels:
            raise ValueError(
                f"latents have {self.latents.shape[1]} channels, {family.name} takes "
                f"{family.vae.latent_channels}: they were encoded with another model's VAE"
            )
        for name, prompts in (("positive", self.positives), ("negative", self.negatives or ())):
            if family.needs_pooled and any(prompt.pooled is None for prompt in prompts):
                raise ValueError(f"{name} has no pooled CLIP vector: it was not encoded for FLUX.1")
        if not self.positives:
            raise ValueError("positive is empty, expected at least one prompt")
        for prompt in (*self.positives, *(self.negatives or ())):
            if prompt.guidance is not None:
                check_number(prompt.guidance, "guidance", 0, 1000)
            if prompt.references is not None:
                prompt.references.check(family.vae.latent_channels)
        guiding_of(self.settings.guidance_options, self.negatives)
        self._refuse_changes()
        for control in self.controls:
            check_condition(control)
        if self.controls and not family.takes_controls:
            raise ValueError(
                f"{family.name} takes no ControlNets: those of FLUX.1 were not made for it"
            )
        for use in lora_uses(self.loras):
            use.check(self.transformer)
        self._check_rows()
        for adapter in self.adapters:
            check_adapter(adapter, self.transformer, len(self.latents))
        if self.settings.sigmas is not None:
            check_sigmas(self.settings.sigmas)
        check_tiling(self.tiles)
        check_differential(self.differential)

    @property
    def positives(self) -> list[Conditioning]:
        """All prompts of what to draw."""
        return as_list(self.positive)

    @property
    def negatives(self) -> list[Conditioning] | None:
        """All prompts of what to avoid."""
        return None if self.negative is None else as_list(self.negative)

    @cached_property
    def noise_schedule(self) -> NoiseSchedule:
        return self.settings.noise_schedule(self.transformer, self.latents.shape, self.tiles)

    @property
    def vae(self) -> VAEConfig:
        """Channels and constants of the latents."""
        return family_of(self.transformer).vae

    @property
    def steps(self) -> int:
        return max(0, len(self.noise_schedule.sigmas) - 1)

    @property
    def modules(self) -> list[nn.Module]:
        """What must be on the device: the transformer, and the ControlNets behind it."""
        return [self.transformer, *(control.net for control in self.controls)]

    @property
    def policies(self) -> list[OffloadPolicy | None]:
        """Of each of ``modules``, where it has one of its own."""
        return [None, *(control.policy for control in self.controls)]

    @property
    def work(self) -> Work:
        """What the run takes beside the weights."""
        denoiser = self.denoiser(META, self.lora_factors(META))
        sides = [side.count for side in denoiser.sides]
        work = picture_work(
            denoiser,
            [control.net for control in self.controls],
            SAMPLERS[self.settings.sampler],
            self.noise_schedule.sigmas,
            self.mask,
        )
        return work_of_keeping(work, self.transformer, sides, len(self.latents))

    @cached_property
    def mask_by_steps(self) -> MaskBySteps | None:
        """What a grey mask is at each step, where it is not blended."""
        schedule = self.noise_schedule
        return mask_by_steps(schedule.sigmas, schedule.table, self.differential)

    def lora_factors(self, device: torch.device) -> LoraFactors | None:
        """How LoRAs that are attached now count from step to step; None where all do alike."""
        table, shape = self.noise_schedule.table, self.latents.shape
        return lora_factors(self.transformer, self.loras, table, shape, device)

    def _check_rows(self) -> None:
        """Raise ``ValueError`` for masks that are neither for one picture nor for each."""
        masks = [("a LoRA's", use.region.mask) for use in lora_uses(self.loras) if use.region]
        for prompt in (*self.positives, *(self.negatives or ())):
            parts = prompt.regional.prompts if prompt.regional else ()
            masks += [("a region's", p.region.mask) for p in parts if p.region.mask is not None]
            texts = [each.text_mask for each in (prompt, *parts) if each.text_mask is not None]
            masks += [("a prompt's text", text) for text in texts]
        batch = len(self.latents)
        for whose, mask in masks:
            rows = 1 if mask.ndim == 2 and whose != "a prompt's text" else len(mask)
            if rows not in (1, batch):
                raise ValueError(
                    f"{whose} mask has {rows} rows, the batch {batch}: expected 1 or all"
                )

    def _refuse_changes(self) -> None:
        """Raise ``ValueError`` where references that are the same in every step would not be."""
        prompts = (*self.positives, *(self.negatives or ()))
        if not any(prompt.references and prompt.references.aside for prompt in prompts):
            return
        for what, there in (
            ("LoRAs with schedules or regions", any(use.by_row for use in counting(self.loras))),
            ("NAG", self.settings.guidance_options.nag is not None),
        ):
            if there:
                raise ValueError(
                    f"references that attend to themselves alone are drawn without {what}: take "
                    "one of them away, or let their attention be joint"
                )

    def denoiser(
        self, device: torch.device, loras: LoraFactors | None = None, keep: Keep = True
    ) -> Denoiser:
        """The model as the samplers see it, on a device where its weights are; how LoRAs count, and
        ``keep`` as ``sample`` has it."""
        schedule, tiles, options = self.noise_schedule, None, self.settings.guidance_options
        if self.tiles is not None:
            sigmas = schedule.sigmas.tolist()
            tiles = Tiles(self.tiles, sigmas, self.mask, self.mask_by_steps, self.between)
        return Denoiser(
            self.transformer,
            self.positives,
            self.negatives,
            self.settings.cfg,
            self.controls,
            schedule.table,
            self.latents.shape,
            device,
            options=options,
            zero_sigma=options.zero_sigma(schedule.sigmas),
            loras=loras,
            tiles=tiles,
            keep=keep,
            adapters=self.adapters,
        )


def as_list(prompts: Conditioning | Sequence[Conditioning]) -> list[Conditioning]:
    return [prompts] if isinstance(prompts, Conditioning) else list(prompts)
