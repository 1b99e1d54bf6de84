"""What conditioning says, by either loader and by FluxSampler. Checks of ``bridge.py``."""

from __future__ import annotations

from typing import Any

from bridge_setup import (
    GREEN,
    MODEL,
    RED,
    STOCK,
    VAE,
    Tensor,
    check,
    close,
    differs,
    flux_sampler,
    host_sizes,
    ksampler,
    latent,
    picture,
    refused,
    same,
    text,
)
from in_process import call, choices, has, torch


@check("FluxGuidance")
def guidance() -> None:
    (strong,) = call("FluxGuidance", conditioning=RED, guidance=8.0)
    differs(both(positive=strong), both())
    (without,) = call("FluxDisableGuidance", conditioning=RED)
    differs(both(positive=without), both())


def both(**more: Any) -> Tensor:
    """The stock sampler with either model and FluxSampler draw the same; returns it."""
    ours = same(**more)
    close(flux_sampler(**more), ours)
    return ours


def area(conditioning: list, strength: float = 1.0, x: int = 0) -> list:
    (placed,) = call(
        "ConditioningSetArea",
        conditioning=conditioning,
        width=64,
        height=128,
        x=x,
        y=0,
        strength=strength,
    )
    return placed


def combined(*parts: list) -> list:
    return [entry for part in parts for entry in part]


@check()
def regions() -> None:
    wide = {"latent_image": latent(16, 16)}
    plain = both(**wide)
    left = area(text("a blue star"), 0.8, 64)
    differs(both(positive=combined(RED, left), **wide), plain)
    differs(both(positive=area(RED), **wide), plain)
    (shares,) = call(
        "ConditioningSetAreaPercentage",
        conditioning=GREEN,
        width=0.5,
        height=0.3,
        x=0.4,
        y=0.5,
        strength=1.5,
    )
    both(positive=combined(RED, shares), negative=combined(GREEN, left), **wide)
    (weaker,) = call("ConditioningSetAreaStrength", conditioning=shares, strength=0.3)
    both(positive=combined(RED, weaker), **wide)


@check("ConditioningSetMask")
def masks() -> None:
    wide = {"latent_image": latent(16, 16)}
    mask = torch.zeros(1, 128, 128)
    mask[:, 30:90, 20:70] = 1.0
    for bounds in ("default", "mask bounds"):
        (masked,) = call(
            "ConditioningSetMask",
            conditioning=text("a blue star"),
            mask=mask,
            strength=0.7,
            set_cond_area=bounds,
        )
        differs(both(positive=combined(RED, masked), **wide), both(**wide))


@check("ConditioningSetTimestepRange")
def spans() -> None:
    (early,) = call(
        "ConditioningSetTimestepRange", conditioning=text("a blue star"), start=0.0, end=0.4
    )
    (late,) = call("ConditioningSetTimestepRange", conditioning=RED, start=0.4, end=1.0)
    differs(both(positive=combined(early, late), steps=5), both(steps=5))


@check("ConditioningSetDefaultCombine")
def default_prompts() -> None:
    wide = {"latent_image": latent(16, 16)}
    mask = torch.zeros(1, 128, 128)
    mask[:, :, :60] = 1.0
    (left,) = call(
        "ConditioningSetMask",
        conditioning=RED,
        mask=mask,
        strength=1.0,
        set_cond_area="default",
    )
    (kept,) = call("ConditioningSetDefaultCombine", cond=left, cond_DEFAULT=GREEN)
    both(positive=kept, cfg=1.0, **wide)


@check("ReferenceLatent")
def references() -> None:
    (one,) = call("ReferenceLatent", conditioning=RED, latent={"samples": picture(8, 6)})
    (two,) = call("ReferenceLatent", conditioning=one, latent={"samples": picture(5, 8)})
    differs(both(positive=one), both())
    differs(both(positive=two), both(positive=one))
    if has("FluxKontextMultiReferenceLatentMethod"):
        for method in choices("FluxKontextMultiReferenceLatentMethod", "reference_latents_method"):
            (placed,) = call(
                "FluxKontextMultiReferenceLatentMethod",
                conditioning=two,
                reference_latents_method=method,
            )
            try:
                ksampler(STOCK, positive=placed)
            except RuntimeError:  # index_timestep_zero, which the host has for FLUX.2 alone
                close(flux_sampler(positive=placed), ksampler(MODEL, positive=placed))
                continue
            both(positive=placed)


@check()
def attention_masks() -> None:
    tokens = RED[0][0].shape[1]
    bias = torch.zeros(1, tokens + 1, tokens + 1, dtype=torch.float16)
    bias[:, -1, :4] = -2.0
    masked = [[c, e | {"attention_mask": bias, "attention_mask_img_shape": (1, 1)}] for c, e in RED]
    differs(both(positive=masked), both())


@check("InpaintModelConditioning")
def inpainting() -> None:
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 64, 64)
    mask[:, 16:48, 16:48] = 1.0
    positive, negative, start = call(
        "InpaintModelConditioning",
        positive=RED,
        negative=GREEN,
        vae=VAE,
        pixels=pixels,
        mask=mask,
        noise_mask=True,
    )
    both(positive=positive, negative=negative, latent_image=start)


@check()
def odd_sizes() -> None:
    for height, width in ((7, 8), (9, 11)):
        both(latent_image=latent(height, width))


@check()
def batches() -> None:
    both(latent_image=latent(batch=3))
    both(latent_image={"samples": picture().repeat(2, 1, 1, 1)}, denoise=0.6)


def stock_controlnet() -> Any:
    """A FLUX ControlNet of the host's own, of two double and one single block, random weights."""
    import comfy.controlnet
    import comfy.latent_formats
    import comfy.ops
    from comfy.ldm.flux.controlnet import ControlNetFlux

    sizes = host_sizes() | {"depth": 2, "depth_single_blocks": 1}
    torch.manual_seed(11)
    net = ControlNetFlux(
        latent_input=True,
        control_latent_channels=16,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.manual_cast,
        **sizes,
    )
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return comfy.controlnet.ControlNet(
        net,
        compression_ratio=1,
        latent_format=comfy.latent_formats.Flux(),
        load_device=torch.device("cpu"),
        manual_cast_dtype=None,
        extra_conds=["y", "guidance"],
    )


@check("ControlNetApplyAdvanced")
def stock_controlnets() -> None:
    pixels = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    positive, negative = call(
        "ControlNetApplyAdvanced",
        positive=RED,
        negative=GREEN,
        control_net=stock_controlnet(),
        image=pixels,
        strength=0.8,
        start_percent=0.0,
        end_percent=0.7,
        vae=VAE,
    )
    differs(same(positive=positive, negative=negative), same())
    refused("stock ControlNet", lambda: flux_sampler(positive=positive))
