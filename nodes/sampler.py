"""The node that draws latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import Control
from flux_core.sampling.latents import CONSTANTS, destandardise
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw
from flux_core.sampling.samplers import SAMPLERS
from flux_core.sampling.sigmas import SCHEDULERS, SHIFTS

from . import host
from .memory_manager import HostOffloadRunner
from .preview import preview
from .wires import CATEGORY, FLUX_CONTROL, FLUX_MODEL, FluxModel, conditioning_of, controls_of


class FluxSampler:
    """FLUX.1's sampler."""

    DESCRIPTION = (
        "Draws latents with FLUX.1. Noise and sigmas are the host's, so that the same seed gives "
        "the same picture as its KSampler. The latent may be any empty one, or an encoded "
        "picture with denoise below 1; a noise mask on it is respected."
    )
    CATEGORY = CATEGORY
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
                "model": (FLUX_MODEL, {"tooltip": "From FluxLoaderFP8."}),
                "positive": ("CONDITIONING", {"tooltip": "What to draw."}),
                "latent": (
                    "LATENT",
                    {"tooltip": "Size, batch, and with denoise below 1 the start."},
                ),
                "seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 0xFFFFFFFFFFFFFFFF,
                        "control_after_generate": True,
                        "tooltip": "The same seed gives the same picture.",
                    },
                ),
                "steps": (
                    "INT",
                    {"default": 20, "min": 1, "max": 1000, "tooltip": "20 for dev, 4 for schnell."},
                ),
                "cfg": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 30.0,
                        "step": 0.1,
                        "tooltip": "True guidance against the negative prompt; above 1 every step "
                        "takes twice as long. FLUX.1 dev is made for 1.",
                    },
                ),
                "sampler": (
                    list(SAMPLERS),
                    {"default": "euler", "tooltip": "How steps are taken."},
                ),
                "scheduler": (
                    list(SCHEDULERS),
                    {"default": "simple", "tooltip": "How steps are spaced."},
                ),
                "shift": (
                    list(SHIFTS),
                    {
                        "default": "host",
                        "tooltip": "host: as the stock KSampler. resolution: grows with the "
                        "size of the picture, as FLUX.1 was trained. diffsynth: a fixed 3.",
                    },
                ),
                "denoise": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.01,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "1 starts from noise; less keeps more of the latent.",
                    },
                ),
            },
            "optional": {
                "negative": (
                    "CONDITIONING",
                    {"tooltip": "What to avoid; read where cfg is not 1."},
                ),
                "control": (FLUX_CONTROL, {"tooltip": "ControlNets."}),
                "sigmas": (
                    "SIGMAS",
                    {
                        "tooltip": "Instead of steps, scheduler, shift and denoise.",
                        "advanced": True,
                    },
                ),
            },
        }

    def sample(
        self,
        model: FluxModel,
        positive: list,
        latent: dict,
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
    ):
        request = DrawRequest(
            model.transformer,
            conditioning_of(positive),
            start := start_latents(latent["samples"]),
            SamplingSettings(
                seed=seed,
                steps=steps,
                cfg=cfg,
                sampler=sampler,
                scheduler=scheduler,
                shift=shift,
                denoise=denoise,
                sigmas=sigmas,
                batch_index=latent.get("batch_index"),
            ),
            negative=None if negative is None else conditioning_of(negative, "negative"),
            mask=mask_of(latent, start),
            controls=controls_of(control),
            loras=model.loras,
        )
        runner = HostOffloadRunner(model.policy, host.device())
        with host.progress(request.steps, "drawing") as bar:

            def report(step: int, total: int, denoised: Tensor) -> None:
                bar.update(step, preview(denoised, model.preview))

            (drawn,) = draw(runner, [request], callback=report)
            bar.update(request.steps)
        host.account(runner.report)
        kept = {k: v for k, v in latent.items() if k != "downscale_ratio_spacial"}
        return (kept | {"samples": drawn}, str(runner.report))


def start_latents(samples: Tensor) -> Tensor:
    """Latents to start from: an empty one of any channels is what FLUX.1 takes for nothing."""
    if samples.ndim != 4:
        raise ValueError(f"latent has shape {tuple(samples.shape)}, expected (B, 16, h, w)")
    if not bool(samples.count_nonzero()):
        shape = (samples.shape[0], CONSTANTS.z_channels, *samples.shape[2:])
        return destandardise(torch.zeros(shape))
    if samples.shape[1] != CONSTANTS.z_channels:
        raise ValueError(
            f"latent has {samples.shape[1]} channels, FLUX.1 takes {CONSTANTS.z_channels}: "
            "it was encoded with another model's VAE"
        )
    return samples


def mask_of(latent: dict, start: Tensor) -> Tensor | None:
    """The latent's noise mask as (B, 1, h, w), 1 where to draw."""
    mask = latent.get("noise_mask")
    if mask is None:
        return None
    mask = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    return F.interpolate(mask, start.shape[-2:], mode="bilinear")
