"""The two models that the checks of ``bridge.py`` compare, and what they compare them with."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from in_process import call, folder_paths, module, torch

Tensor = torch.Tensor
STEPS, SEED = 3, 5
CHECKS: dict[str, tuple[Callable[[], None], tuple[str, ...]]] = {}


def check(*needs: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Registers a check, and the host's nodes that it needs."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        CHECKS[function.__name__] = function, needs
        return function

    return register


FLUX, TEXTS, VAE, MODEL, CLIP = call(
    "FluxLoaderFP8", transformer_precision="fp32", t5_precision="bf16"
)


def host_sizes() -> dict[str, Any]:
    """The transformer's sizes as this host's FLUX takes them."""
    from comfy.ldm.flux.model import FluxParams

    sizes = module("nodes.bridge.model_patcher").unet_config(FLUX.transformer)
    known = {field.name for field in dataclasses.fields(FluxParams)}
    return {name: size for name, size in sizes.items() if name in known}


def stock_model() -> Any:
    """The same file by the host's own code, in float32."""
    import comfy.model_detection as detection
    import comfy.model_patcher
    import comfy.utils

    config = detection.model_config_from_unet_config(host_sizes() | {"image_model": "flux"})
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "")
    path = folder_paths.get_full_path("diffusion_models", "fluxfit_pocket.safetensors")
    tensors = {name: t.float() for name, t in comfy.utils.load_torch_file(path).items()}
    model.load_model_weights(tensors, "")
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


STOCK = stock_model()


def text(prompt: str, **more: Any) -> list:
    (encoded,) = call("CLIPTextEncode", clip=CLIP, text=prompt)
    return [[context, extra | more] for context, extra in encoded]


RED, GREEN = text("a red circle on a blue background"), text("a green square")


def latent(height: int = 8, width: int = 8, batch: int = 1) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, 16, height, width)}


def picture(height: int = 8, width: int = 8) -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.randn(1, 16, height, width, generator=g)


def ksampler(model: Any, positive: list = RED, negative: list = GREEN, **more: Any) -> Tensor:
    """Latents by the stock KSampler."""
    values = {
        "seed": SEED,
        "steps": STEPS,
        "cfg": 2.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "denoise": 1.0,
        "latent_image": latent(),
    } | more
    (out,) = call("KSampler", model=model, positive=positive, negative=negative, **values)
    return out["samples"]


def flux_sampler(positive: list = RED, negative: list = GREEN, **more: Any) -> Tensor:
    """Latents by our own sampler."""
    values = {"model": FLUX, "seed": SEED, "steps": STEPS, "cfg": 2.0, "denoise": 1.0}
    values |= {"latent": latent()} | more
    if "latent_image" in values:
        values["latent"] = values.pop("latent_image")
    return call("FluxSampler", positive=positive, negative=negative, **values)[0]["samples"]


def close(ours: Tensor, theirs: Tensor, bound: float = 5e-4) -> None:
    """Raise where two latents differ by more than a share of the largest number."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} is not {tuple(theirs.shape)}"
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    assert error < bound, f"differs by {error:.1e}"


def differs(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max()) > 1e-3, "changed nothing"


def same(change: Callable[[Any], Any] = lambda model: model, **more: Any) -> Tensor:
    """The stock KSampler draws the same with either model, both changed by a node; returns it."""
    ours = ksampler(change(MODEL), **more)
    close(ours, ksampler(change(STOCK), **more))
    return ours


def refused(message: str, function: Callable[[], Any]) -> None:
    try:
        function()
    except Exception as error:
        assert message in str(error), f"{error} does not say {message!r}"
    else:
        raise AssertionError("was not refused")
