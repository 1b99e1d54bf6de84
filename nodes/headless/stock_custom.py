"""Stand-ins for the host's sampling in parts: noise, guider, sampler and sigmas on wires."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flux_core.models.config import VAEConfig
from flux_core.models.families import empirical_mu, family_of
from flux_core.sampling.latents import zero_latents
from flux_core.sampling.samplers import SAMPLERS
from flux_core.sampling.sigmas import SCHEDULERS, SigmaTable, make_sigmas, resolution_mu, table_for

from ..sampler import FluxSampler
from ..wires import FluxModel, Latent
from .stock_sampling import CFG, DENOISE, SEED, STEPS

FLUX2_LATENTS = VAEConfig(z_channels=32, patch=2)
SIDE = {"default": 1024, "min": 16, "max": 16384, "step": 8}


@dataclass(frozen=True)
class Noise:
    """Which noise a run begins with; None is none."""

    seed: int | None


@dataclass(frozen=True)
class Guider:
    """What is drawn, and with how much guidance."""

    model: FluxModel
    positive: list
    negative: list | None = None
    cfg: float = 1.0


class RandomNoise:
    FUNCTION = "make"
    RETURN_TYPES = ("NOISE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"noise_seed": SEED}}

    def make(self, noise_seed: int):
        return (Noise(noise_seed),)


class DisableNoise:
    FUNCTION = "make"
    RETURN_TYPES = ("NOISE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return (Noise(None),)


class KSamplerSelect:
    FUNCTION = "choose"
    RETURN_TYPES = ("SAMPLER",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"sampler_name": (list(SAMPLERS),)}}

    def choose(self, sampler_name: str):
        return (sampler_name,)


class BasicScheduler:
    """Sigmas as the model's family spaces them."""

    FUNCTION = "make"
    RETURN_TYPES = ("SIGMAS",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "scheduler": (list(SCHEDULERS),),
                "steps": STEPS,
                "denoise": DENOISE,
            }
        }

    def make(self, model: FluxModel, scheduler: str, steps: int, denoise: float):
        if denoise <= 0:
            return (torch.FloatTensor([]),)
        return (make_sigmas(table_for(family_of(model.transformer)), scheduler, steps, denoise),)


class SplitSigmas:
    """Sigmas up to a step, and from it on."""

    FUNCTION = "split"
    RETURN_TYPES = ("SIGMAS", "SIGMAS")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "sigmas": ("SIGMAS",),
                "step": ("INT", {"default": 0, "min": 0, "max": 10_000}),
            }
        }

    def split(self, sigmas: Tensor, step: int):
        return (sigmas[: step + 1], sigmas[step:])


class BasicGuider:
    FUNCTION = "make"
    RETURN_TYPES = ("GUIDER",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "conditioning": ("CONDITIONING",)}}

    def make(self, model: FluxModel, conditioning: list):
        return (Guider(model, conditioning),)


class CFGGuider:
    FUNCTION = "make"
    RETURN_TYPES = ("GUIDER",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "cfg": CFG,
            }
        }

    def make(self, model: FluxModel, positive: list, negative: list, cfg: float):
        return (Guider(model, positive, negative, cfg),)


class SamplerCustomAdvanced:
    """The sampler of all these parts; its second output, the last estimate, is the host's alone."""

    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "noise": ("NOISE",),
                "guider": ("GUIDER",),
                "sampler": ("SAMPLER",),
                "sigmas": ("SIGMAS",),
                "latent_image": ("LATENT",),
            }
        }

    def sample(
        self, noise: Noise, guider: Guider, sampler: str, sigmas: Tensor, latent_image: Latent
    ):
        drawn = FluxSampler().sample(
            guider.model,
            guider.positive,
            latent_image,
            noise.seed or 0,
            max(1, len(sigmas) - 1),
            guider.cfg,
            sampler,
            "simple",
            "host",
            1.0,
            guider.negative,
            sigmas=sigmas,
            add_noise=noise.seed is not None,
        )
        return (drawn["result"][0],)


class ModelSamplingFlux:
    """The shift of sigmas that the model has anyway; another one is the host's alone."""

    FUNCTION = "patch"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "max_shift": ("FLOAT", {"default": 1.15, "min": 0.0, "max": 100.0, "step": 0.01}),
                "base_shift": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 100.0, "step": 0.01}),
                "width": ("INT", SIDE),
                "height": ("INT", SIDE),
            }
        }

    def patch(self, model: FluxModel, max_shift: float, base_shift: float, width: int, height: int):
        wanted = resolution_mu(width * height / 256, base_shift, max_shift)
        own = family_of(model.transformer).sigma_shift
        if abs(wanted - own) > 1e-4:
            raise ValueError(
                f"ModelSamplingFlux asks for a shift of {wanted:.3f}, this model has {own:g}: "
                "without ComfyUI FluxSampler has its choices under shift"
            )
        return (model,)


class EmptyFlux2LatentImage:
    """Nothing, in the size of FLUX.2's latents."""

    FUNCTION = "make"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "width": ("INT", SIDE),
                "height": ("INT", SIDE),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def make(self, width: int, height: int, batch_size: int):
        return ({"samples": zero_latents(FLUX2_LATENTS, batch_size, height, width)},)


class Flux2Scheduler:
    """Sigmas by the number of steps and the size of the picture, as FLUX.2 was trained."""

    FUNCTION = "make"
    RETURN_TYPES = ("SIGMAS",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"steps": STEPS, "width": ("INT", SIDE), "height": ("INT", SIDE)}}

    def make(self, steps: int, width: int, height: int):
        table = SigmaTable(
            empirical_mu(round(width * height / FLUX2_LATENTS.compression**2), steps)
        )
        return (table.sigma(torch.linspace(1, 0, steps + 1)),)


STOCK_CUSTOM: dict[str, Any] = {
    "BasicGuider": BasicGuider,
    "BasicScheduler": BasicScheduler,
    "CFGGuider": CFGGuider,
    "DisableNoise": DisableNoise,
    "EmptyFlux2LatentImage": EmptyFlux2LatentImage,
    "Flux2Scheduler": Flux2Scheduler,
    "KSamplerSelect": KSamplerSelect,
    "ModelSamplingFlux": ModelSamplingFlux,
    "RandomNoise": RandomNoise,
    "SamplerCustomAdvanced": SamplerCustomAdvanced,
    "SplitSigmas": SplitSigmas,
}
