"""Chroma by the host's code and by ours, and Flex.2 in its samplers. Checks of ``bridge.py``."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

from bridge_setup import check, close, differs, latent, refused
from in_process import call, module, torch, work
from safetensors.torch import save_file

Tensor = torch.Tensor
#: The host numbers Chroma's vectors up to 344, whatever the depth.
SIZES = {"context_in_dim": 128, "hidden_size": 128, "depth": 19, "depth_single_blocks": 38}


def random_state(model: torch.nn.Module) -> dict[str, Tensor]:
    """Numbers of a deviation that leaves something of the input after 57 blocks."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in model.state_dict().items():
        mean = float(name.endswith(".scale"))
        state[name] = mean + 0.05 * torch.randn(tensor.shape, generator=generator)
    return state


def opened(name: str, model: torch.nn.Module, clip_l: str) -> tuple[Any, ...]:
    """A file of a model's layout in the host's folders, by our loader."""
    folder = work / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_state(model), folder / name)
    return call("FluxLoaderFP8", transformer=name, transformer_precision="fp32", clip_l=clip_l)


@cache
def chroma() -> tuple[Any, ...]:
    from flux_core.models.chroma import ChromaConfig, ChromaTransformer

    config = ChromaConfig(**SIZES, approximator_hidden=64, approximator_layers=2)
    return opened("chroma.safetensors", ChromaTransformer(config), "none")


@cache
def stock_chroma() -> Any:
    """The same file by the host's own code."""
    import comfy.model_detection as detection
    import comfy.model_patcher
    import comfy.utils
    from comfy.ldm.chroma.model import ChromaParams

    sizes = module("nodes.bridge.model_patcher").unet_config(chroma()[0].transformer)
    sizes |= {"in_channels": 64, "out_channels": 64, "patch_size": 2, "out_dim": 128}
    sizes |= {"in_dim": 64, "hidden_dim": 64, "n_layers": 2}
    known = {field.name for field in dataclasses.fields(ChromaParams)}
    params = {name: size for name, size in sizes.items() if name in known}
    config = detection.model_config_from_unet_config(params | {"image_model": "chroma"})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    path = work / "models" / "diffusion_models" / "chroma.safetensors"
    tensors = comfy.utils.load_torch_file(str(path))
    tensors = config.process_unet_state_dict(tensors)
    missing = model.diffusion_model.load_state_dict(tensors, strict=False)
    assert not missing.missing_keys, missing
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def encoded(prompt: str, clip: Any = None) -> list:
    return call("CLIPTextEncode", clip=clip or chroma()[4], text=prompt)[0]


def drawn(model: Any, positive: list, negative: list, **more: Any) -> Tensor:
    values = {"seed": 5, "steps": 3, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple"}
    values |= {"denoise": 1.0, "latent_image": latent()} | more
    (out,) = call("KSampler", model=model, positive=positive, negative=negative, **values)
    return out["samples"]


def by_flux_sampler(flux: Any, positive: list, negative: list) -> Tensor:
    values = {"seed": 5, "steps": 3, "cfg": 2.0, "latent": latent(), "denoise": 1.0}
    out = call("FluxSampler", model=flux, positive=positive, negative=negative, **values)
    return out[0]["samples"]


@check()
def chroma_is_drawn_as_the_host_draws_it() -> None:
    """By its KSampler with either model, and by FluxSampler."""
    positive, negative = encoded("a red circle on blue"), encoded("green")
    ours = drawn(chroma()[3], positive, negative)
    close(ours, drawn(stock_chroma(), positive, negative), 1e-4)
    close(by_flux_sampler(chroma()[0], positive, negative), ours, 1e-4)
    differs(drawn(chroma()[3], negative, positive), ours)


@check("ModelSamplingAuraFlow")
def chroma_with_another_shift() -> None:
    positive, negative = encoded("a red circle on blue"), encoded("green")

    def shifted(model: Any) -> Tensor:
        (changed,) = call("ModelSamplingAuraFlow", model=model, shift=1.0)
        return drawn(changed, positive, negative)

    close(shifted(chroma()[3]), shifted(stock_chroma()), 1e-4)
    differs(shifted(chroma()[3]), drawn(chroma()[3], positive, negative))


@check("T5TokenizerOptions")
def chroma_s_text_is_as_long_as_the_prompt() -> None:
    """Padding is what a node asks for; words are those of our own encoder."""
    clip = chroma()[4]
    (plain,) = encoded("a red circle")
    (padded_clip,) = call("T5TokenizerOptions", clip=clip, min_padding=1, min_length=0)
    (padded,) = encoded("a red circle", padded_clip)
    assert padded[0].shape[1] == plain[0].shape[1] + 1
    assert plain[1].get("pooled_output") is None
    ((own, _),) = call("FluxTextEncode", text_encoders=chroma()[1], prompt="a red circle")[0]
    assert own.shape == padded[0].shape
    close(own[:, :-1], plain[0], 1e-2)  # T5 is in eight bits
    (weighted,) = encoded("a (red:1.4) circle")
    differs(weighted[0], plain[0])


@check()
def flex_2_reads_its_pictures_in_stock_samplers() -> None:
    from flux_core.models.config import TransformerConfig
    from flux_core.models.transformer import FluxTransformer

    sizes = {"context_in_dim": 128, "hidden_size": 128, "depth": 8, "depth_single_blocks": 1}
    config = TransformerConfig(**sizes, vec_in_dim=192, in_channels=196)
    name = "fluxfit_pocket_clip_l.safetensors"
    flux, _, vae, model, clip = opened("flex2.safetensors", FluxTransformer(config), name)
    positive, negative = encoded("a red circle", clip), encoded("green", clip)
    plain = drawn(model, positive, negative)
    close(by_flux_sampler(flux, positive, negative), plain, 1e-4)
    pictures = {"image": torch.rand(1, 64, 64, 3), "control_image": torch.rand(1, 64, 64, 3)}
    mask = torch.zeros(1, 64, 64)
    mask[:, :32] = 1
    control = {"conditioning": positive, "vae": vae, "mask": mask, **pictures}
    (guided,) = call("FluxFitFlexControl", **control)
    ours = drawn(model, guided, negative)
    differs(ours, plain)
    close(by_flux_sampler(flux, guided, negative), ours, 1e-4)
    (early,) = call("FluxFitFlexControl", **control, end=0.5)
    refused("counts up to 0.5 of the steps", lambda: drawn(model, early, negative))
    differs(by_flux_sampler(flux, early, negative), ours)
