"""The one way to draw: a request says what, ``draw`` brings the parts to the device and draws it.

    request = DrawRequest(transformer, positive, latents, SamplingSettings(seed=1))
    latents = draw(OffloadRunner(policy, device), [request])[0]

Pipeline, nodes, calibration and training samples all come here, so that a LoRA, a ControlNet or a
cache works in all of them on the day it works in one. Latents are (B, 16, h, w): raw VAE latents
outside, standardised inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..lora import LoraStack, lora_applied, lora_uses
from ..models.side_tokens import Keep
from ..offload import OffloadPolicy, OffloadRunner, Work
from ..offload.plan import Plan
from ..offload.turns import turn_of
from ..quant import set_compute
from ..record import note
from . import facts
from .adapters import made_ready
from .denoiser import keep_outside
from .fitting import fitting_control
from .kept import keeping
from .latents import destandardise, standardise
from .parallel import DeviceGroup, group_of
from .request import DrawRequest
from .samplers import SAMPLERS, step_noise
from .settings import SamplingSettings

__all__ = [
    "DrawRequest",
    "SamplingSettings",
    "StepCallback",
    "draw",
    "run_with_loras",
    "sample",
    "while_drawing",
    "with_fitting_controls",
]

T = TypeVar("T")
#: Steps done before this one, steps in all, and the picture as it is believed now: standardised
#: latents (B, 16, h, w). Over several requests the steps are those of all.
StepCallback = Callable[[int, int, Tensor], None]


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
    return while_drawing(runner, requests, lambda draw_all: draw_all(), name, callback, spread=True)


def while_drawing(
    runner: OffloadRunner,
    requests: Sequence[DrawRequest],
    function: Callable[[Callable[[], list[Tensor]]], T],
    name: str = "transformer",
    callback: StepCallback | None = None,
    spread: bool = False,
) -> T:
    """Call a function while all that some requests need is on the device, their LoRAs in place.

    The function is given what draws them all and returns their latents; observing layers wants to
    know what happens meanwhile. With ``spread`` all devices of the policy draw, else the runner's
    own. Arguments and errors as ``draw`` has them.
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
    group = group_of(runner, requests) if spread else None

    def draw_all(plan: Plan) -> list[Tensor]:
        done = 0
        drawn: list[Tensor] = []
        for request in requests:

            def step(number: int, _: int, denoised: Tensor, before: int = done) -> None:
                if callback is not None:
                    callback(before + number, total, denoised)

            drawn.append(sample(request, runner.device, step, keeping(runner, plan), group))
            note_drawn(request, group is not None)
            done += request.steps
        return drawn

    def held(plan: Plan) -> T:
        with nullcontext() if group is None else group.holding(name, plan):
            return function(partial(draw_all, plan))

    def work() -> Work:
        if group is not None:
            return group.work()
        return max((request.work for request in requests), key=lambda work: work.activations)

    modules = first.modules
    with turn_of(*modules), nullcontext() if group is None else group.ready(first.loras, name):
        return run_with_loras(runner, first.loras, name, modules, held, work, first.policies)


def note_drawn(request: DrawRequest, one_by_one: bool) -> None:
    """Note how a request was drawn; ``one_by_one``: each picture of its batch by itself."""
    note(
        "draw",
        **facts.of_latents(request.transformer, request.latents, request.noise_schedule.sigmas),
        **facts.of_settings(request.settings),
        **facts.of_prompts(request.positives),
        loras=facts.of_loras(request.loras),
        controls=facts.of_controls(request.controls),
        one_by_one=True if one_by_one and len(request.latents) > 1 else None,
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
    group: DeviceGroup | None = None,
) -> Tensor:
    """Draw a request with a transformer that is on the device already; ``draw`` brings it there.

    ``keep``: what does not change over the steps is kept, or where, if there is such. ``group``:
    devices that draw together, each of which keeps what its plan says.

    Returns raw latents (B, 16, h, w), float32 on the CPU. Where the last sigma is above 0 they hold
    noise, scaled so that a run that adds none goes on from them.
    """
    device, settings, schedule = torch.device(device), request.settings, request.noise_schedule
    start = standardise(request.latents.float(), request.vae).to(device)
    noise, sigmas = schedule.noise.to(device), schedule.sigmas.to(device)
    denoiser = (
        request.denoiser(device, request.lora_factors(device), keep)
        if group is None
        else group.denoiser(request)
    )
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
