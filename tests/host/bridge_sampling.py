"""Samplers, schedulers, guiders, and nodes that change a model. Checks of ``bridge.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bridge_setup import (
    FLUX,
    GREEN,
    MODEL,
    RED,
    SEED,
    STEPS,
    STOCK,
    Tensor,
    check,
    close,
    differs,
    flux_sampler,
    ksampler,
    latent,
    picture,
    same,
    text,
)
from in_process import call, torch


@check()
def every_sampler_and_scheduler() -> None:
    samplers, schedulers = all_names()
    wrong = []
    for sampler, scheduler in [(s, "simple") for s in samplers] + [
        ("euler", s) for s in schedulers
    ]:
        try:
            same(sampler_name=sampler, scheduler=scheduler)
        except AssertionError as error:
            wrong.append(f"{sampler}, {scheduler}: {error}")
    assert not wrong, "; ".join(wrong)


def all_names() -> tuple[list[str], list[str]]:
    import comfy.samplers

    return comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS


def guided(model: Any, guider: Any, sigmas: Tensor | None = None, sampler: str = "euler") -> Tensor:
    """Latents by SamplerCustomAdvanced."""
    (noise,) = call("RandomNoise", noise_seed=SEED)
    (chosen,) = call("KSamplerSelect", sampler_name=sampler)
    if sigmas is None:
        (sigmas,) = call(
            "BasicScheduler", model=model, scheduler="simple", steps=STEPS, denoise=1.0
        )
    out = call(
        "SamplerCustomAdvanced",
        noise=noise,
        guider=guider,
        sampler=chosen,
        sigmas=sigmas,
        latent_image=latent(),
    )
    return out[0]["samples"]


@check("SamplerCustomAdvanced")
def guiders() -> None:
    def all_three(model: Any) -> list[Tensor]:
        (basic,) = call("BasicGuider", model=model, conditioning=RED)
        (cfg,) = call("CFGGuider", model=model, positive=RED, negative=GREEN, cfg=2.0)
        blue = text("a blue star")
        (dual,) = call(
            "DualCFGGuider",
            model=model,
            cond1=RED,
            cond2=blue,
            negative=GREEN,
            cfg_conds=2.0,
            cfg_cond2_negative=1.5,
        )
        return [guided(model, guider) for guider in (basic, cfg, dual)]

    for ours, theirs in zip(all_three(MODEL), all_three(STOCK), strict=True):
        close(ours, theirs)


@check("SamplerCustom")
def sampler_custom() -> None:
    def draw(model: Any) -> Tensor:
        (sigmas,) = call("BasicScheduler", model=model, scheduler="beta", steps=STEPS, denoise=0.7)
        (sampler,) = call("KSamplerSelect", sampler_name="dpmpp_2m")
        return call(
            "SamplerCustom",
            model=model,
            add_noise=True,
            noise_seed=SEED,
            cfg=1.5,
            positive=RED,
            negative=GREEN,
            sampler=sampler,
            sigmas=sigmas,
            latent_image={"samples": picture()},
        )[0]["samples"]

    close(draw(MODEL), draw(STOCK))


@check("KSamplerAdvanced")
def parts_of_a_schedule() -> None:
    def draw(model: Any) -> Tensor:
        common = {
            "model": model,
            "noise_seed": SEED,
            "steps": 4,
            "cfg": 2.0,
            "sampler_name": "euler",
            "scheduler": "simple",
            "positive": RED,
            "negative": GREEN,
        }
        (first,) = call(
            "KSamplerAdvanced",
            add_noise="enable",
            latent_image=latent(),
            start_at_step=0,
            end_at_step=2,
            return_with_leftover_noise="enable",
            **common,
        )
        (last,) = call(
            "KSamplerAdvanced",
            add_noise="disable",
            latent_image=first,
            start_at_step=2,
            end_at_step=4,
            return_with_leftover_noise="disable",
            **common,
        )
        return last["samples"]

    close(draw(MODEL), draw(STOCK))


@check("KSamplerSelect")
def the_host_s_samplers_in_ours() -> None:
    for name in ("euler", "res_multistep", "uni_pc"):
        (sampler,) = call("KSamplerSelect", sampler_name=name)
        ours = flux_sampler(sampler_object=sampler, steps=4)
        (sigmas,) = call("BasicScheduler", model=STOCK, scheduler="simple", steps=4, denoise=1.0)
        (guider,) = call("CFGGuider", model=STOCK, positive=RED, negative=GREEN, cfg=2.0)
        close(ours, guided(STOCK, guider, sigmas, name))
    (guider,) = call("CFGGuider", model=MODEL, positive=RED, negative=GREEN, cfg=2.0)
    close(flux_sampler(guider=guider, sampler_object=sampler, steps=4), ours)
    close(flux_sampler(guider=guider, cfg=7.0), ksampler(STOCK))


@check("ModelSamplingFlux")
def model_sampling() -> None:
    plain = same()

    def shifted(model: Any) -> Any:
        (changed,) = call(
            "ModelSamplingFlux", model=model, max_shift=2.0, base_shift=0.5, width=1024, height=1024
        )
        return changed

    differs(same(shifted), plain)
    assert torch.equal(ksampler(MODEL), plain), "the model behind kept the shift"


def node(name: str, **inputs: Any) -> Callable[[Any], Any]:
    return lambda model: call(name, model=model, **inputs)[0]


@check("DifferentialDiffusion")
def differential_diffusion() -> None:
    mask = torch.linspace(0, 1, 64).reshape(1, 8, 8)
    start = {"samples": picture(), "noise_mask": mask}
    same(node("DifferentialDiffusion"), latent_image=start)


@check("DifferentialDiffusion")
def differential_diffusion_of_our_sampler() -> None:
    """FluxSampler's own, against the host's node on the host's model."""
    start = {"samples": picture(), "noise_mask": torch.linspace(0, 1, 64).reshape(1, 8, 8)}
    for strength in (1.0, 0.4, 0.0):
        (stock,) = call("DifferentialDiffusion", model=STOCK, strength=strength)
        theirs = ksampler(stock, latent_image=start)
        (ours,) = call("FluxFitDifferentialDiffusion", model=FLUX, strength=strength)
        close(flux_sampler(latent=start, model=ours), theirs)
    differs(theirs, ksampler(STOCK, latent_image=start))


@check("EasyCache")
def easy_cache() -> None:
    same(node("EasyCache", reuse_threshold=0.3, start_percent=0.0, end_percent=1.0), steps=6)


@check("CFGZeroStar")
def cfg_zero_star() -> None:
    differs(same(node("CFGZeroStar")), same())


@check("NAGuidance")
def normalized_attention_guidance() -> None:
    differs(same(node("NAGuidance"), cfg=1.0), same(cfg=1.0))


@check("ScaleROPE")
def scaled_positions() -> None:
    scaled = node("ScaleROPE", scale_x=1.5, shift_x=1.0, scale_y=0.5, shift_y=0.0)
    differs(same(scaled), same())
