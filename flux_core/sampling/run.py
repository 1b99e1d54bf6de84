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
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..bounds import MOST_SEED, brief, check_number, check_span
from ..lora import LoraStack, lora_applied
from ..models.config import VAEConfig
from ..models.controlnet import FluxControlNet
from ..models.families import family_of
from ..models.transformer import FluxTransformer
from ..offload import OffloadPolicy, OffloadRunner, Work
from ..offload.plan import Plan
from ..offload.turns import turn_of
from ..offload.workload import sampling_work
from ..quant import set_compute
from .conditioning import Conditioning, Control
from .denoiser import Denoiser, keep_outside
from .images import scaled_to
from .latents import destandardise, host_noise, image_tokens, standardise
from .samplers import SAMPLERS, step_noise
from .sigmas import (
    SHIFTS,
    SigmaTable,
    check_sigmas,
    check_steps,
    make_sigmas,
    table_for,
    wrong_shift,
)

T = TypeVar("T")
#: Steps done before this one, steps in all, and the picture as it is believed now: standardised
#: latents (B, 16, h, w). Over several requests the steps are those of all.
StepCallback = Callable[[int, int, Tensor], None]


class NoiseSchedule(NamedTuple):
    """Where a run starts and how it goes.

    ``noise`` is (B, 16, h, w), standard normal; ``sigmas`` are (steps + 1,), falling; ``table`` is
    the shift behind them, for the span of controls.
    """

    noise: Tensor
    sigmas: Tensor
    table: SigmaTable


@dataclass(frozen=True, eq=False)
class SamplingSettings:
    """How a run goes; names and numbers are checked when it is made (``ValueError``).

    ``cfg``: true classifier-free guidance, 1 leaves the negative prompt out. ``sigmas`` (steps +
    1,) stand in the place of ``steps``, ``scheduler`` and ``denoise``; they may end above 0, and
    another run goes on from there. ``batch_index``: which picture of a larger batch each row is, so
    that it gets that one's noise. ``add_noise``: False goes on with latents that hold noise.
    """

    seed: int = 0
    steps: int = 20
    cfg: float = 1.0
    sampler: str = "euler"
    scheduler: str = "simple"
    shift: str = "host"
    denoise: float = 1.0
    sigmas: Tensor | None = None
    batch_index: Sequence[int] | None = None
    add_noise: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, str) or self.sampler not in SAMPLERS:
            expected = f"expected one of {', '.join(SAMPLERS)}"
            raise ValueError(f"sampler is {brief(self.sampler)}, {expected}")
        if not isinstance(self.shift, str) or self.shift not in SHIFTS:
            raise wrong_shift(self.shift)
        check_steps(self.scheduler, self.steps, self.denoise)
        check_number(self.seed, "seed", 0, MOST_SEED, whole=True)
        object.__setattr__(self, "seed", int(self.seed))  # of numpy it may be
        check_number(self.cfg, "cfg", -1000, 1000)

    def noise_schedule(self, transformer: FluxTransformer, shape: Sequence[int]) -> NoiseSchedule:
        """The host's noise and sigmas for latents of a shape (B, 16, h, w)."""
        family = family_of(transformer)
        tokens = image_tokens(shape[-2], shape[-1], geometry=family.tokens)
        table = table_for(family, self.shift, tokens, self.steps)
        sigmas = self.sigmas
        if sigmas is None:
            sigmas = make_sigmas(table, self.scheduler, self.steps, self.denoise)
        noise = torch.zeros(tuple(shape))
        if self.add_noise:
            noise = host_noise(shape, self.seed, self.batch_index)
        return NoiseSchedule(noise, sigmas, table)


def check_control(control: Control) -> None:
    """Raise ``ValueError`` for what is no ControlNet's, and for its numbers out of range."""
    if not isinstance(control, Control):
        raise ValueError(f"controls has {brief(control)}, expected a Control")
    check_number(control.strength, "a ControlNet's strength", -1000, 1000)
    check_span(control.start, control.end, "a ControlNet's")
    if not isinstance(control.net, FluxControlNet):
        raise ValueError(f"a Control has {brief(control.net)}, expected a FLUX.1 ControlNet")


@dataclass(frozen=True, eq=False)
class DrawRequest:
    """All that decides what is drawn, whoever asks for it.

    Args:
        positive: one prompt, or several with their regions and spans.
        latents: raw latents (B, 16, h, w) to start from; they matter where the first sigma is below
            1 or a mask keeps a part.
        negative: read where ``settings.cfg`` is not 1; one or several as ``positive``.
        mask: (1 or B, 1, h, w) in [0, 1], 1 where to draw and 0 where to keep ``latents``.
        loras: with their strengths, beside the transformer's layers for this run.

    Raises ``ValueError`` for latents of another VAE, and for prompts that the transformer's family
    does not read.
    """

    transformer: FluxTransformer
    positive: Conditioning | Sequence[Conditioning]
    latents: Tensor
    settings: SamplingSettings = SamplingSettings()
    negative: Conditioning | Sequence[Conditioning] | None = None
    mask: Tensor | None = None
    controls: Sequence[Control] = ()
    loras: LoraStack = ()

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
        for control in self.controls:
            check_control(control)
        if self.controls and not family.takes_controls:
            raise ValueError(f"{family.name} takes no FLUX.1 ControlNet: they were not made for it")
        for _, strength in self.loras:
            check_number(strength, "a LoRA's strength", -1000, 1000)
        if self.settings.sigmas is not None:
            check_sigmas(self.settings.sigmas)

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
        return self.settings.noise_schedule(self.transformer, self.latents.shape)

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

    def context_tokens(self, prompt: Conditioning) -> int:
        """Text tokens that the transformer reads of a prompt."""
        return max(int(prompt.context.shape[1]), family_of(self.transformer).context_length)

    @property
    def work(self) -> Work:
        """What the run takes beside the weights."""
        prompts = self.positives
        if self.negatives is not None and self.settings.cfg != 1.0:
            prompts = prompts + self.negatives
        geometry = family_of(self.transformer).tokens
        behind = max(p.references.token_count(geometry) if p.references else 0 for p in prompts)
        return sampling_work(
            self.transformer,
            [control.net for control in self.controls],
            image_tokens=image_tokens(*self.latents.shape[-2:], geometry=geometry) + behind,
            text_tokens=max(self.context_tokens(prompt) for prompt in prompts),
            batch=len(self.latents),
            vectors=self.steps * len(prompts),
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
    first = requests[0]
    if any(
        request.modules != first.modules or request.loras != first.loras for request in requests
    ):
        raise ValueError("requests that are drawn together need the same model, controls and LoRAs")
    for control in first.controls:
        if control.compute is not None:
            set_compute(control.net, control.compute)
    total = sum(request.steps for request in requests)

    def draw_all() -> list[Tensor]:
        done = 0
        drawn: list[Tensor] = []
        for request in requests:

            def step(number: int, _: int, denoised: Tensor, before: int = done) -> None:
                if callback is not None:
                    callback(before + number, total, denoised)

            drawn.append(sample(request, runner.device, step))
            done += request.steps
        return drawn

    return run_with_loras(
        runner,
        first.loras,
        name,
        first.modules,
        lambda _: function(draw_all),
        max((request.work for request in requests), key=lambda work: work.activations),
        first.policies,
    )


def with_fitting_controls(request: DrawRequest) -> DrawRequest:
    """A request whose control pictures have the size of what is drawn, as the host scales them."""
    side = request.vae.compression
    height, width = (side * rows for rows in request.latents.shape[-2:])
    controls = []
    for control in request.controls:
        picture, encode = control.picture, control.encode
        fits = control.cond.shape[-2:] == request.latents.shape[-2:]
        if not fits and picture is not None and encode is not None:
            control = replace(control, cond=encode(scaled_to(picture, height, width)))
        controls.append(control)
    if all(a is b for a, b in zip(controls, request.controls, strict=True)):
        return request
    return replace(request, controls=controls)


def run_with_loras(
    runner: OffloadRunner,
    loras: LoraStack,
    name: str,
    modules: Sequence[nn.Module],
    function: Callable[[Plan], T],
    work: Work,
    policies: Sequence[OffloadPolicy | None] = (),
) -> T:
    """``OffloadRunner.run`` with LoRAs beside the layers of the modules that they fit."""
    with turn_of(*modules), ExitStack() as stack:
        for module in modules:
            if getattr(module, "part", "") != "controlnet":
                stack.enter_context(lora_applied(module, loras))
        return runner.run(name, modules, function, work, policies)


@torch.no_grad()
def sample(
    request: DrawRequest,
    device: torch.device | str = "cpu",
    callback: StepCallback | None = None,
) -> Tensor:
    """Draw a request with a transformer that is on the device already; ``draw`` brings it there.

    Returns raw latents (B, 16, h, w), float32 on the CPU. Where the last sigma is above 0 they hold
    noise, scaled so that a run that adds none goes on from them.
    """
    device, settings, schedule = torch.device(device), request.settings, request.noise_schedule
    start = standardise(request.latents.float(), request.vae).to(device)
    noise, sigmas = schedule.noise.to(device), schedule.sigmas.to(device)
    denoiser = Denoiser(
        request.transformer,
        request.positives,
        request.negatives,
        settings.cfg,
        request.controls,
        schedule.table,
        request.latents.shape,
        device,
    )
    if not len(sigmas):
        return request.latents.float().cpu()
    x = sigmas[0] * noise + (1 - sigmas[0]) * start

    def report(step: int, _: Tensor, denoised: Tensor) -> None:
        if callback is not None:
            callback(step, request.steps, denoised)

    model = denoiser
    if request.mask is not None:
        model = keep_outside(denoiser, request.mask.to(start), start, noise)
    with denoiser.precompute_modulations(schedule.sigmas):
        x = SAMPLERS[settings.sampler](model, x, sigmas, step_noise(x, settings.seed), report)
    if 0 < sigmas[-1] < 1:
        x = x / (1 - sigmas[-1])
    return destandardise(x, request.vae).cpu()
