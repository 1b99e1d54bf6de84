"""What conditioning says, by either loader and by FluxSampler. Checks of ``bridge.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bridge_setup import (
    CLIP,
    FLUX,
    GREEN,
    MODEL,
    RED,
    SEED,
    STEPS,
    STOCK,
    TEXTS,
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
from in_process import call, choices, folder_paths, has, torch
from safetensors.torch import save_file


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


@check("ReferenceLatent", "FluxKontextImageScale")
def reference_node() -> None:
    """FLUX Reference puts on a prompt what the host's nodes put there, whoever draws."""
    pixels = torch.rand(1, 50, 70, 3, generator=torch.Generator().manual_seed(1))
    (scaled,) = call("FluxKontextImageScale", image=pixels)
    small = scaled[:, :64, :48]
    ours, negative, empty = call(
        "FluxFitReference", positive=RED, negative=GREEN, vae=VAE, image=small, size="own"
    )
    (encoded,) = call("VAEEncode", vae=VAE, pixels=small)
    theirs, theirs_negative = (
        call("ReferenceLatent", conditioning=prompt, latent=encoded)[0] for prompt in (RED, GREEN)
    )
    assert empty["samples"].shape == encoded["samples"].shape
    close(ksampler(MODEL, ours, negative), ksampler(STOCK, theirs, theirs_negative))
    close(flux_sampler(ours, negative), ksampler(STOCK, theirs, theirs_negative))
    differs(ksampler(MODEL, ours, negative), ksampler(MODEL, ours, GREEN))
    (wide,) = call("FluxFitReference", positive=RED, vae=VAE, image=pixels)[:1]
    assert wide[0][1]["reference_latents"][0].shape[-2:] == tuple(n // 8 for n in scaled.shape[1:3])


@check("ReferenceLatent")
def reference_attention() -> None:
    """What is drawn otherwise than the host does is refused where the host would draw it."""
    (placed,) = call("ReferenceLatent", conditioning=RED, latent={"samples": picture(8, 6)})
    (model,) = call("FluxFitReferenceAttention", model=FLUX, attention="self")
    values = {"positive": placed, "latent": latent(), "steps": STEPS, "seed": SEED}
    joint = call("FluxSampler", model=FLUX, **values)[0]["samples"]
    differs(call("FluxSampler", model=model, **values)[0]["samples"], joint)
    (sampler,) = call("KSamplerSelect", sampler_name="euler")
    refused(
        "draws with FluxSampler's own samplers",
        lambda: call("FluxSampler", model=model, sampler_object=sampler, **values),
    )
    (guider,) = call("BasicGuider", model=MODEL, conditioning=placed)
    refused(
        "draws with FluxSampler's own samplers",
        lambda: call("FluxSampler", model=model, guider=guider, **values),
    )
    (plain,) = call("BasicGuider", model=MODEL, conditioning=RED)
    call("FluxSampler", model=model, guider=plain, **values)
    if has("FluxKVCache"):
        (cached,) = call("FluxKVCache", model=MODEL)
        refused("FluxFitReferenceAttention", lambda: ksampler(cached, placed))


@check()
def regional_prompts() -> None:
    """Regions that attention reads are refused where the host would draw without them."""
    (region,) = call("FluxFitRegion", conditioning=GREEN)
    placed, _ = call("FluxFitRegionalPrompts", conditioning=RED, regions=region)
    values = {"latent": latent(), "steps": STEPS, "seed": SEED}
    (drawn, *_) = call("FluxSampler", model=FLUX, positive=placed, **values)
    differs(drawn["samples"], call("FluxSampler", model=FLUX, positive=RED, **values)[0]["samples"])
    (sampler,) = call("KSamplerSelect", sampler_name="euler")
    (guider,) = call("BasicGuider", model=MODEL, conditioning=placed)
    for draw in (
        lambda: ksampler(MODEL, placed),
        lambda: call("FluxSampler", model=FLUX, positive=RED, guider=guider, **values),
        lambda: call("FluxSampler", model=FLUX, positive=placed, sampler_object=sampler, **values),
    ):
        refused("FLUX Regional Prompts draw with FluxSampler's own samplers", draw)


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


def words(count: int) -> str:
    """A prompt of many tokens."""
    return " ".join(["a red circle on a blue background and a green square"] * count)


@check()
def our_own_encoder_reads_prompts_as_the_host_does() -> None:
    folder = Path(folder_paths.get_folder_paths("embeddings")[0])
    folder.mkdir(parents=True, exist_ok=True)
    g = torch.Generator().manual_seed(2)
    widths = {"clip_l": TEXTS.module.clip_l, "t5xxl": TEXTS.module.t5}
    both = {
        key: torch.randn(3, encoder.table.embedding_dim, generator=g)
        for key, encoder in widths.items()
    }
    save_file(both, folder / "both.safetensors")
    torch.save({"string_to_param": {"*": both["clip_l"]}}, folder / "old.pt")
    shortest = text("")[0][0].shape[1]
    for prompt in (
        "a (red:1.4) circle on a (blue background:0.6)",
        "((a red circle)) (on: blue) (ratio 16:9)",
        r"a \(red\) circle (with (nested:1.3) words) and (open",
        "a closed) circle (red:1.2)",
        "(a red circle:-0.3), (:1.2) ()",
        "a embedding:both, on a blue background",
        "(embedding:both:1.3) on blue embedding:both",
        "embedding:old here",
        words(8),
        words(40),
        f"({words(12)}:1.2) green",
        f"{words(6)} (green square:1.3) red",
    ):
        theirs = text(prompt)[0]
        ((context, extra),) = call(
            "FluxTextEncode", text_encoders=TEXTS, prompt=prompt, t5_length=shortest
        )[0]
        try:
            close(context, theirs[0])
            close(extra["pooled_output"], theirs[1]["pooled_output"])
        except AssertionError as error:
            raise AssertionError(f"{prompt[:60]}: {error}") from error
    refused(
        "no embedding 'missing'",
        lambda: call("FluxTextEncode", text_encoders=TEXTS, prompt="a embedding:missing"),
    )


@check()
def packs_that_weigh_prompts_by_themselves() -> None:
    """They take tokens apart by word, weigh them anew and call the encoders below the CLIP."""
    prompt = "a (red:1.3) circle on a blue background"
    context, extra = text(prompt)[0]
    tokens = CLIP.tokenize(prompt, return_word_ids=True)
    pairs = {
        name: [[(token, weight) for token, weight, _ in section] for section in sections]
        for name, sections in tokens.items()
    }
    words = {word for section in tokens["t5xxl"] for _, _, word in section}
    assert len(words) > 2, "every group of a prompt has a number of its own"
    CLIP.load_model()
    model = CLIP.cond_stage_model
    ours, _ = model.t5xxl.encode_token_weights(pairs["t5xxl"])
    _, pooled = model.clip_l.encode_token_weights(pairs["l"])
    assert torch.equal(ours, context) and torch.equal(pooled, extra["pooled_output"])
    again, pooled_again = CLIP.encode_from_tokens(pairs, return_pooled=True)
    assert torch.equal(again, context) and torch.equal(pooled_again, extra["pooled_output"])
    plain = [[(token, 1.0) for token, _ in section] for section in pairs["t5xxl"]]
    differs(model.t5xxl.encode_token_weights(plain)[0], context)
    for tokenizer in (CLIP.tokenizer.clip_l, CLIP.tokenizer.t5xxl):
        assert tokenizer.tokenizer("red circle")["input_ids"] and tokenizer.inv_vocab
