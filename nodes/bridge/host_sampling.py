"""The host's samplers and guiders for FluxSampler: a SAMPLER in the place of our four, a GUIDER in
the place of model and prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any

from torch import Tensor

from .. import host
from ..wires import FluxModel, Latent
from .model_patcher import host_model

#: Steps done, and the picture as it is believed now: standardised latents (B, 16, h, w).
Callback = Callable[[int, Tensor], None]
OUTSIDE = "sampler_object and guider are ComfyUI's: they work inside of it alone"


def guider_of(model: FluxModel, positive: list, negative: list | None, cfg: float) -> Any:
    """The host's guider for our model and the host's prompts."""
    samplers = host.comfy("comfy.samplers")
    if samplers is None:
        raise ValueError(OUTSIDE)
    guider = samplers.CFGGuider(host_model(model))
    guided = negative is not None and cfg != 1.0
    guider.inner_set_conds({"positive": positive} | ({"negative": negative} if guided else {}))
    guider.set_cfg(cfg if guided else 1.0)
    return guider


def refers(guider: Any, prompts: Sequence[Any]) -> bool:
    """Whether a guider's prompts, or those where there is no guider, have reference latents."""
    entries = [entry[1] for entry in prompts]
    if guider is not None:
        of_guider = getattr(guider, "original_conds", {})
        entries = [entry for conds in of_guider.values() for entry in conds]
    return any(entry.get("reference_latents") for entry in entries)


def named_sampler(name: str) -> Any:
    """The host's SAMPLER of a name."""
    samplers = host.comfy("comfy.samplers")
    if samplers is None:
        raise ValueError(OUTSIDE)
    return samplers.sampler_object(name)


def sample(
    guider: Any,
    sampler: Any,
    sigmas: Tensor,
    latent: Latent,
    seed: int,
    add_noise: bool,
    callback: Callback,
) -> Tensor:
    """Raw latents (B, 16, h, w) by the host's sampling, for sigmas (steps + 1,).

    Raises ``ValueError`` for a guider of another value than the host's nodes make.
    """
    module = host.comfy("comfy.sample")
    if module is None:
        raise ValueError(OUTSIDE)
    if not hasattr(guider, "model_patcher") or not hasattr(guider, "sample"):
        raise ValueError(f"guider is {type(guider).__name__}, expected one of ComfyUI's")
    patcher = guider.model_patcher
    # newer hosts make an empty latent of other models' pixels one of this model's
    ratio, fix = latent.get("downscale_ratio_spacial"), module.fix_empty_latent_channels
    known = "downscale_ratio_spacial" in signature(fix).parameters
    start = fix(patcher, latent["samples"], *([ratio] if known else []))
    noise = module.prepare_noise(start, seed, latent.get("batch_index"))
    drawn = guider.sample(
        noise if add_noise else noise * 0,
        start,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=lambda step, denoised, x, total: callback(step, denoised),
        disable_pbar=True,
        seed=seed,
    )
    return drawn.cpu().float()
