"""FLUX.2 on the MODEL wire: the host's own model and ours draw the same."""

from __future__ import annotations

from functools import cache
from typing import Any

from bridge_setup import check, close, differs, ksampler
from in_process import call, module, torch

NODE = "EmptyFlux2LatentImage"


def small(guidance: bool) -> Any:
    """A FLUX.2 transformer of random numbers."""
    from flux_core.models.flux2 import Flux2Config, Flux2Transformer

    config = Flux2Config(
        context_in_dim=48,
        hidden_size=256,
        depth=2,
        depth_single_blocks=2,
        guidance_embed=guidance,
    )
    with torch.inference_mode(False):
        model = Flux2Transformer(config).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            mean = float(name.endswith("scale"))
            parameter.copy_(mean + 0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@cache
def both(guidance: bool) -> tuple[Any, Any, Any]:
    """Our wire, our MODEL, and the host's own model of the same weights."""
    import comfy.model_detection as detection
    import comfy.model_patcher

    from flux_core import OffloadPolicy

    wires, patcher = module("nodes.wires"), module("nodes.bridge.model_patcher")
    flux = wires.FluxModel(small(guidance), OffloadPolicy())
    state = {
        name.replace("norm.scale", "norm.weight"): value.clone()
        for name, value in flux.module.state_dict().items()
    }
    config = detection.model_config_from_unet(state, "")
    config.set_inference_dtype(torch.float32, None)
    theirs = config.get_model({}, "")
    theirs.load_model_weights(state, "")
    cpu = torch.device("cpu")
    return flux, patcher.host_model(flux), comfy.model_patcher.ModelPatcher(theirs, cpu, cpu)


def prompt(seed: int, tokens: int = 20) -> list:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(1, tokens)
    return [[torch.randn(1, tokens, 48, generator=generator), {"attention_mask": mask}]]


def drawn(model: Any, positive: list, **more: Any) -> Any:
    latent = {"samples": torch.zeros(1, 128, 4, 3)}
    return ksampler(model, positive, prompt(2), latent_image=latent, **more)


@check(NODE)
def flux2_draws_what_the_host_draws() -> None:
    for guidance in (True, False):
        flux, ours, theirs = both(guidance)
        expected = drawn(theirs, prompt(1))
        close(drawn(ours, prompt(1)), expected)
        out = call(
            "FluxSampler",
            model=flux,
            positive=prompt(1),
            negative=prompt(2),
            latent={"samples": torch.zeros(1, 128, 4, 3)},
            seed=5,
            steps=3,
            cfg=2.0,
        )
        close(out[0]["samples"], expected)


@check(NODE, "ReferenceLatent")
def flux2_places_references_as_the_host_does() -> None:
    _, ours, theirs = both(True)
    generator = torch.Generator().manual_seed(4)
    positive = prompt(1)
    for size in ((2, 3), (4, 2)):
        latent = {"samples": torch.randn(1, 128, *size, generator=generator)}
        (positive,) = call("ReferenceLatent", conditioning=positive, latent=latent)
    expected = drawn(theirs, positive)
    close(drawn(ours, positive), expected)
    differs(expected, drawn(theirs, prompt(1)))


@check(NODE, "Flux2Scheduler", "SamplerCustomAdvanced")
def flux2_draws_by_its_own_scheduler() -> None:
    flux, ours, theirs = both(False)
    (sigmas,) = call("Flux2Scheduler", steps=4, width=48, height=64)
    (noise,) = call("RandomNoise", noise_seed=5)
    (sampler,) = call("KSamplerSelect", sampler_name="euler")
    latent = {"samples": torch.zeros(1, 128, 4, 3)}
    results = []
    for model in (ours, theirs):
        (guider,) = call("BasicGuider", model=model, conditioning=prompt(1))
        out = call(
            "SamplerCustomAdvanced",
            noise=noise,
            guider=guider,
            sampler=sampler,
            sigmas=sigmas,
            latent_image=latent,
        )
        results.append(out[0]["samples"])
    close(*results)
    own = call(
        "FluxSampler",
        model=flux,
        positive=prompt(1),
        latent=latent,
        seed=5,
        steps=4,
        shift="resolution",
    )
    close(own[0]["samples"], results[1])


@check(NODE)
def flux2_keeps_what_a_mask_keeps() -> None:
    _, ours, theirs = both(True)
    mask = torch.zeros(1, 4, 3)
    mask[..., :2] = 1
    generator = torch.Generator().manual_seed(4)
    latent = {"samples": torch.randn(1, 128, 4, 3, generator=generator), "noise_mask": mask}
    close(
        ksampler(ours, prompt(1), prompt(2), latent_image=latent),
        ksampler(theirs, prompt(1), prompt(2), latent_image=latent),
    )


@cache
def language() -> Any:
    """A tiny Qwen3 with a tokenizer of bytes."""
    from flux_core.models.language import LanguageConfig, LanguageEncoder
    from flux_core.models.language_encoders import LanguageTextEncoders
    from tests import flux2_models

    state = {
        name.removeprefix("model."): value
        for name, value in flux2_models.qwen_model().state_dict().items()
    }
    config = LanguageConfig.from_shapes({name: tuple(v.shape) for name, v in state.items()})
    with torch.inference_mode(False):
        encoder = LanguageEncoder(config).eval().requires_grad_(False)
        encoder.load_state_dict(state, strict=False)
    return LanguageTextEncoders(encoder, flux2_models.qwen_tokenizer())


@check(NODE)
def a_language_model_on_the_clip_wire_is_ours() -> None:
    from flux_core import OffloadPolicy

    wires, clip = module("nodes.wires"), module("nodes.bridge.clip_wire")
    texts = wires.FluxTextEncoders(language(), OffloadPolicy())
    (ours,) = call("FluxTextEncode", text_encoders=texts, prompt="a (cat:1.3)", guidance=3.5)
    (stock,) = call("CLIPTextEncode", clip=clip.host_clip(texts), text="a (cat:1.3)")
    close(stock[0][0], ours[0][0])
    (guided,) = call("FluxGuidance", conditioning=stock, guidance=2.0)
    assert guided[0][1]["guidance"] == 2.0
    (joined,) = call("ConditioningConcat", conditioning_to=stock, conditioning_from=stock)
    assert joined[0][0].shape[1] == 2 * stock[0][0].shape[1]
