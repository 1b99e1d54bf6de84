"""The one way to draw: a request says what, ``draw`` brings the parts to the device and draws it.

    request = DrawRequest(transformer, positive, latents, SamplingSettings(seed=1))
    latents = draw(OffloadRunner(policy, device), [request])[0]

Pipeline, nodes, calibration and training samples all come here, so that a LoRA, a ControlNet or a
cache works in all of them on the day it works in one. Latents are (B, 16, h, w): raw VAE latents
outside, standardised inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..bounds import check_number
from ..lora import LoraStack, lora_applied, lora_uses
from ..lora.apply import counting
from ..models.config import VAEConfig
from ..models.families import family_of
from ..models.side_tokens import Keep
from ..models.transformer import FluxTransformer
from ..offload import OffloadPolicy, OffloadRunner, Work
from ..offload.plan import Plan
from ..offload.turns import turn_of
from ..quant import set_compute
from ..record import note
from . import facts
from .adapters import AppliedAdapter, check_adapter, made_ready
from .conditioning import Conditioning, Control
from .denoiser import Denoiser, keep_outside
from .differential import MaskBySteps, check_differential, mask_by_steps
from .fitting import check_condition, fitting_control
from .kept import keeping, work_of_keeping
from .latents import destandardise, standardise
from .lora_factors import LoraFactors, lora_factors
from .picture_work import picture_work
from .reading import guiding_of
from .samplers import SAMPLERS, step_noise
from .settings import NoiseSchedule, SamplingSettings
from .sigmas import check_sigmas
from .tiles import Tiling, check_tiling
from .windows import Tiles

T = TypeVar("T")
#: Where a run is counted.
META = torch.device("meta")
#: Steps done before this one, steps in all, and the picture as it is believed now: standardised
#: latents (B, 16, h, w). Over several requests the steps are those of all.
StepCallback = Callable[[int, int, Tensor], None]


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


def draw(
    runner: OffloadRunner,
    requests: Sequence[DrawRequest],
    *,
    name: str = "transformer",
    callback: StepCallback | None = None,
) -> list[Tensor]:
    """Draw the latents of some requests, one after another, under a policy.

    Args:
        requests: of one transformer, with the same controls and LoRAs.
        name: of the part in the report.
        callback: called before every step is applied; an exception that it raises ends the run.

    Returns:
        Raw latents (B, 16, h, w) of each, float32 on the CPU. Raises ``ValueError`` for parts that
        do not belong together. A model that reads a picture draws without one from zeros, as the
        host does, and a warning says so.
    """
    return while_drawing(runner, requests, lambda draw_all: draw_all(), name, callback)


def while_drawing(
    runner: OffloadRunner,
    requests: Sequence[DrawRequest],
    function: Callable[[Callable[[], list[Tensor]]], T],
    name: str = "transformer",
    callback: StepCallback | None = None,
) -> T:
    """Call a function while all that some requests need is on the device, their LoRAs in place.

    The function is given what draws them all and returns their latents; observing layers wants to
    know what happens meanwhile. Arguments and errors as ``draw`` has them.
    """
    requests = [with_fitting_controls(request) for request in requests]
    requests = [
        replace(request, adapters=made_ready(runner, request.adapters))
        if request.adapters
        else request
        for request in requests
    ]
    first = requests[0]
    loras = lora_uses(first.loras)
    if any(
        request.modules != first.modules or lora_uses(request.loras) != loras
        for request in requests
    ):
        raise ValueError("requests that are drawn together need the same model, controls and LoRAs")
    for control in first.controls:
        if control.compute is not None:
            set_compute(control.net, control.compute)
    total = sum(request.steps for request in requests)

    def draw_all(plan: Plan) -> list[Tensor]:
        done = 0
        drawn: list[Tensor] = []
        for request in requests:

            def step(number: int, _: int, denoised: Tensor, before: int = done) -> None:
                if callback is not None:
                    callback(before + number, total, denoised)

            drawn.append(sample(request, runner.device, step, keeping(runner, plan)))
            note_drawn(request)
            done += request.steps
        return drawn

    return run_with_loras(
        runner,
        first.loras,
        name,
        first.modules,
        lambda plan: function(partial(draw_all, plan)),
        lambda: max((request.work for request in requests), key=lambda work: work.activations),
        first.policies,
    )


def note_drawn(request: DrawRequest) -> None:
    """Note how a request was drawn."""
    note(
        "draw",
        **facts.of_latents(request.transformer, request.latents, request.noise_schedule.sigmas),
        **facts.of_settings(request.settings),
        **facts.of_prompts(request.positives),
        loras=facts.of_loras(request.loras),
        controls=facts.of_controls(request.controls),
    )


def with_fitting_controls(request: DrawRequest) -> DrawRequest:
    """A request whose control pictures have the size of what is drawn, as the host scales them."""
    side, shape = request.vae.compression, request.latents.shape
    controls = [fitting_control(control, shape, side) for control in request.controls]
    if all(a is b for a, b in zip(controls, request.controls, strict=True)):
        return request
    return replace(request, controls=controls)


def run_with_loras(
    runner: OffloadRunner,
    loras: LoraStack,
    name: str,
    modules: Sequence[nn.Module],
    function: Callable[[Plan], T],
    work: Callable[[], Work],
    policies: Sequence[OffloadPolicy | None] = (),
) -> T:
    """``OffloadRunner.run`` with LoRAs beside the layers of the modules that they fit; ``work`` is
    asked when they are there."""
    with turn_of(*modules), ExitStack() as stack:
        for module in modules:
            if getattr(module, "part", "") != "controlnet":
                stack.enter_context(lora_applied(module, loras))
        return runner.run(name, modules, function, work(), policies)


@torch.no_grad()
def sample(
    request: DrawRequest,
    device: torch.device | str = "cpu",
    callback: StepCallback | None = None,
    keep: Keep = True,
) -> Tensor:
    """Draw a request with a transformer that is on the device already; ``draw`` brings it there.

    ``keep``: what does not change over the steps is kept, or where, if there is such.

    Returns raw latents (B, 16, h, w), float32 on the CPU. Where the last sigma is above 0 they hold
    noise, scaled so that a run that adds none goes on from them.
    """
    device, settings, schedule = torch.device(device), request.settings, request.noise_schedule
    start = standardise(request.latents.float(), request.vae).to(device)
    noise, sigmas = schedule.noise.to(device), schedule.sigmas.to(device)
    denoiser = request.denoiser(device, request.lora_factors(device), keep)
    if not len(sigmas):
        return request.latents.float().cpu()
    x = sigmas[0] * noise + (1 - sigmas[0]) * start

    def report(step: int, _: Tensor, denoised: Tensor) -> None:
        if callback is not None:
            callback(step, request.steps, denoised)

    model = denoiser
    if request.mask is not None:
        mask = request.mask.to(start)
        model = keep_outside(denoiser, mask, start, noise, request.mask_by_steps)
    with denoiser.precompute_modulations(schedule.sigmas):
        x = SAMPLERS[settings.sampler](model, x, sigmas, step_noise(x, settings.seed), report)
    if 0 < sigmas[-1] < 1:
        x = x / (1 - sigmas[-1])
    return destandardise(x, request.vae).cpu()
