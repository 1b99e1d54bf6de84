"""The node that draws latents."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import Control
from flux_core.models.families import family_of
from flux_core.offload import MemoryReport
from flux_core.sampling.guidance import PLAIN_GUIDANCE
from flux_core.sampling.latents import destandardise
from flux_core.sampling.references import JOINT
from flux_core.sampling.run import DrawRequest, SamplingSettings, StepCallback, draw
from flux_core.sampling.samplers import SAMPLERS
from flux_core.sampling.settings import checked_seed
from flux_core.sampling.sigmas import SCHEDULERS, SHIFTS
from flux_core.units import readable_bytes, readable_seconds

from . import accounts, host
from .bridge.host_sampling import guider_of, named_sampler, refers, sample
from .bridge.host_work import refuse_regions
from .conditioning import conditioning_of
from .memory_manager import HostOffloadRunner
from .preview import preview
from .widgets import choice, integer, number, socket, toggle
from .wires import (
    FLUX_CONTROL,
    FLUX_MODEL,
    SAMPLING,
    FluxModel,
    Latent,
    controls_of,
)

log = logging.getLogger("fluxfit")


class FluxSampler:
    """FLUX's sampler."""

    DESCRIPTION = (
        "Draws latents with FLUX.1, FLUX.2 or Chroma. Noise and sigmas are the host's, so that the "
        "same seed gives the same picture as its KSampler. The latent may be any empty one, or an "
        "encoded picture with denoise below 1; a noise mask on it is respected. Prompts may have "
        "regions, masks, spans and reference latents. When it ends it shows what it took."
    )
    CATEGORY = SAMPLING
    FUNCTION = "sample"
    SEARCH_ALIASES = ["ksampler", "flux sampler"]
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "report")
    OUTPUT_TOOLTIPS = ("For VAE Decode.", "Memory and time of each part, as text.")

    # long: a table of inputs
    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": socket(FLUX_MODEL, "From FluxLoaderFP8."),
                "positive": socket("CONDITIONING", "What to draw."),
                "latent": socket("LATENT", "Size, batch, and with denoise below 1 the start."),
                "seed": integer(
                    0,
                    0,
                    0xFFFFFFFFFFFFFFFF,
                    "The same seed gives the same picture.",
                    control_after_generate=True,
                ),
                "steps": integer(20, 1, 1000, "20 for dev, 4 for schnell."),
                "cfg": number(
                    1.0,
                    0.0,
                    30.0,
                    0.1,
                    "True guidance against the negative prompt; above 1 every step "
                    "takes twice as long. FLUX.1 dev is made for 1.",
                ),
                "sampler": choice(list(SAMPLERS), "How steps are taken.", default="euler"),
                "scheduler": choice(list(SCHEDULERS), "How steps are spaced.", default="simple"),
                "shift": choice(
                    list(SHIFTS),
                    "host: as the stock KSampler. resolution: grows with the "
                    "size of the picture, as FLUX.1 was trained. diffsynth: a fixed 3.",
                    default="host",
                ),
                "denoise": number(
                    1.0, 0.01, 1.0, 0.01, "1 starts from noise; less keeps more of the latent."
                ),
            },
            "optional": {
                "negative": socket(
                    "CONDITIONING", "What to avoid; read where cfg is not 1, and by FLUX NAG."
                ),
                "control": socket(FLUX_CONTROL, "ControlNets."),
                "sigmas": socket(
                    "SIGMAS", "Instead of steps, scheduler, shift and denoise.", advanced=True
                ),
                "sampler_object": socket(
                    "SAMPLER",
                    "Any sampler of ComfyUI (KSamplerSelect), instead of the choice above.",
                    advanced=True,
                ),
                "guider": socket(
                    "GUIDER",
                    "Any guider of ComfyUI: its model and prompts are drawn, in the place of "
                    "model, positive, negative and cfg.",
                    advanced=True,
                ),
                "add_noise": toggle(
                    True,
                    "Off goes on with a latent that holds noise, from sigmas that were split.",
                    advanced=True,
                ),
            },
        }

    def sample(
        self,
        model: FluxModel,
        positive: list,
        latent: Latent,
        seed: int,
        steps: int,
        cfg: float,
        sampler: str,
        scheduler: str,
        shift: str,
        denoise: float,
        negative: list | None = None,
        control: Sequence[Control] | None = None,
        sigmas: Tensor | None = None,
        sampler_object: Any = None,
        guider: Any = None,
        add_noise: bool = True,
    ):
        settings = SamplingSettings(
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler=sampler,
            scheduler=scheduler,
            shift=shift,
            denoise=denoise,
            sigmas=sigmas,
            batch_index=latent.get("batch_index"),
            add_noise=add_noise,
            guidance_options=model.guidance_options,
        )
        if sampler_object is None and guider is None:
            drawn, report, done = self.by_ours(model, positive, negative, latent, settings, control)
        else:
            refuse_own(model, control, guider, [*positive, *(negative or ())])
            guider = guider or guider_of(model, positive, negative, cfg)
            drawn, report, done = self.by_the_host(model, guider, sampler_object, latent, settings)
        kept = {k: v for k, v in latent.items() if k != "downscale_ratio_spacial"}
        shown = summary(report, done)
        return {
            "ui": {"text": (shown,)},
            "result": (kept | {"samples": drawn}, str(report)),
        }

    def by_ours(
        self,
        model: FluxModel,
        positive: list,
        negative: list | None,
        latent: Latent,
        settings: SamplingSettings,
        control: Sequence[Control] | None,
    ) -> tuple[Tensor, MemoryReport, int]:
        """Latents (B, 16, h, w) by the core's own samplers, what it took, and its steps."""
        request = request_of(model, positive, negative, latent, settings, control)
        runner = HostOffloadRunner(model.policy, host.device())
        with drawing_progress(request.steps, model) as report:
            (drawn,) = draw(runner, [request], callback=report)
        accounts.account(runner.report)
        return drawn, runner.report, request.steps

    def by_the_host(
        self,
        model: FluxModel,
        guider: Any,
        sampler: Any,
        latent: Latent,
        settings: SamplingSettings,
    ) -> tuple[Tensor, MemoryReport, int]:
        """Latents (B, 16, h, w) by the host's sampling, what it took, and its steps."""
        ratio = latent.get("downscale_ratio_spacial")
        shape = start_latents(latent["samples"], model, ratio).shape
        sigmas = settings.noise_schedule(model.transformer, shape).sigmas
        steps = max(0, len(sigmas) - 1)
        with host.progress(steps, "drawing") as bar:

            def report(step: int, denoised: Tensor) -> None:
                bar.update(step, preview(denoised, model.preview))

            drawn = sample(
                guider,
                sampler if sampler is not None else named_sampler(settings.sampler),
                sigmas,
                latent,
                checked_seed(settings.seed),
                settings.add_noise,
                report,
            )
            bar.update(steps)
        return drawn, accounts.last, steps


def refuse_own(
    model: FluxModel, control: Sequence[Control] | None, guider: Any, prompts: Sequence[Any]
) -> None:
    """Raise ``ValueError`` for what only our own samplers draw, where the host's are asked for."""
    refuse_regions([entry[1] for entry in prompts])
    if control:
        raise ValueError(
            "ControlNets on the control input draw with FluxSampler's own samplers: take "
            "sampler_object and guider away, or use ControlNetApplyAdvanced"
        )
    if model.guidance_options != PLAIN_GUIDANCE:
        raise ValueError(
            "FLUX Guidance Options and FLUX NAG draw with FluxSampler's own samplers: take "
            "sampler_object and guider away, or use the host's nodes on the loader's MODEL"
        )
    if model.tiles is not None or model.differential is not None:
        raise ValueError(
            "FluxFitTiledDrawing and FluxFitDifferentialDiffusion draw with FluxSampler's "
            "own samplers: take sampler_object and guider away"
        )
    if model.reference_attention != JOINT and refers(guider, prompts):
        raise ValueError(
            "FLUX Reference Attention draws with FluxSampler's own samplers: take sampler_object "
            "and guider away, or choose joint"
        )
    if model.adapters and guider is not None:
        raise ValueError(
            "IP-Adapters are on the model, and guider draws with a model of its own: take "
            "guider away"
        )


def request_of(
    model: FluxModel,
    positive: list,
    negative: list | None,
    latent: Latent,
    settings: SamplingSettings,
    control: Sequence[Control] | None,
) -> DrawRequest:
    """What a node's wires ask the core to draw."""
    attend, family = model.reference_attention, family_of(model.transformer)
    if negative is None and settings.cfg != 1.0:
        log.warning(
            "cfg is %g and nothing is wired to negative: drawn as at 1; an empty prompt will do",
            settings.cfg,
        )
    return DrawRequest(
        model.transformer,
        conditioning_of(positive, "positive", attend, family),
        start := start_latents(latent["samples"], model, latent.get("downscale_ratio_spacial")),
        settings,
        negative=None
        if negative is None
        else conditioning_of(negative, "negative", attend, family),
        mask=mask_of(latent, start),
        controls=controls_of(control),
        loras=model.loras,
        adapters=model.adapters,
        tiles=model.tiles,
        differential=model.differential,
        between=host.check_interrupt,
    )


@contextmanager
def drawing_progress(steps: int, model: FluxModel) -> Iterator[StepCallback]:
    """Called at every step, it shows how far drawing is, and the picture as it is believed now."""
    with host.progress(steps, "drawing") as bar:

        def report(step: int, total: int, denoised: Tensor) -> None:
            bar.update(step, preview(denoised, model.preview))

        yield report
        bar.update(steps)


def summary(report: MemoryReport, steps: int) -> str:
    """What drawing took, in one line: memory, beside what was predicted, and seconds a step."""
    part = report.parts.get("transformer")
    if part is None:
        return "nothing was drawn"
    predicted = f"{readable_bytes(part.predicted)} predicted"
    memory = f"{readable_bytes(part.peak)} at most, {predicted}" if part.peak else predicted
    each = f", {readable_seconds(part.seconds / steps)} a step" if steps else ""
    again = ", planned again after memory ran out" if part.replans else ""
    return f"{memory}{each}, mode {part.mode}{again}"


def start_latents(samples: Tensor, model: FluxModel, pixels: int | None = None) -> Tensor:
    """Raw latents (B, 16, h, w) to start from, as the model's VAE has them.

    An empty one of any channels (B, C, h, w) is what the model takes for nothing; where it says
    how many ``pixels`` one of its latents is, it becomes one of the same picture.
    """
    if samples.ndim != 4:
        raise ValueError(f"latent has shape {tuple(samples.shape)}, expected (B, 16, h, w)")
    if not bool(samples.count_nonzero()):
        vae = family_of(model.transformer).vae
        scale = (pixels or vae.compression) / vae.compression
        sides = (round(side * scale) for side in samples.shape[2:])
        shape = (samples.shape[0], vae.latent_channels, *sides)
        return destandardise(torch.zeros(shape), vae)
    return samples


def mask_of(latent: Latent, start: Tensor) -> Tensor | None:
    """The latent's noise mask as (B, 1, h, w), 1 where to draw."""
    mask = latent.get("noise_mask")
    if mask is None:
        return None
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return F.interpolate(mask, start.shape[-2:], mode="bilinear")
