"""API prompts of the shipped workflows, and changes that tests make to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def api(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def key_of(prompt: dict[str, Any], class_type: str) -> str:
    return next(k for k, v in prompt.items() if v["class_type"] == class_type)


def version(server) -> tuple[int, ...]:
    text = server.get("/system_stats")["system"]["comfyui_version"]
    return tuple(int(part) for part in text.split(".")[:2])


def needs_narrow_models(server) -> None:
    """Skip a test on hosts that cannot open the pocket model by themselves."""
    if version(server) < (0, 21):
        pytest.skip("hosts before 0.21 open FLUX.1 at its full width only")


def drawn(server, prompt: dict[str, Any]) -> np.ndarray:
    """The first picture that a prompt saves, (H, W, 3)."""
    return pixels(server.pictures(server.run(prompt))[0])


def as_the_stock_sampler() -> dict[str, Any]:
    """The text-to-image graph, its numbers those of the host's own sampler."""
    prompt = api("text_to_image")
    prompt[key_of(prompt, "FluxLoaderFP8")]["inputs"]["transformer_precision"] = "fp32"
    prompt[key_of(prompt, "FluxSampler")]["inputs"]["shift"] = "host"
    return prompt


def with_lora(prompt: dict[str, Any], name: str, strength: float = 1.0) -> dict[str, Any]:
    """A prompt of ours with a LoRA between loader and sampler."""
    prompt["96"] = {
        "class_type": "FluxFitLoraLoader",
        "inputs": {
            "model": [key_of(prompt, "FluxLoaderFP8"), 0],
            "lora": name,
            "strength": strength,
            "strength_text": 1.0,
            "on": True,
        },
    }
    prompt[key_of(prompt, "FluxSampler")]["inputs"]["model"] = ["96", 0]
    return prompt


def with_stock_sampler(sampler: str, scheduler: str) -> dict[str, Any]:
    """The text-to-image graph with the host's own loader and KSampler instead of ours."""
    prompt = api("text_to_image")
    ours = key_of(prompt, "FluxSampler")
    inputs = prompt[ours]["inputs"]
    prompt["80"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "fluxfit_pocket.safetensors", "weight_dtype": "default"},
    }
    prompt["81"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": ["80", 0],
            "positive": inputs["positive"],
            "negative": inputs["negative"],
            "latent_image": inputs["latent"],
            "seed": inputs["seed"],
            "steps": inputs["steps"],
            "cfg": inputs["cfg"],
            "sampler_name": sampler,
            "scheduler": scheduler,
            "denoise": 1.0,
        },
    }
    prompt[key_of(prompt, "VAEDecode")]["inputs"]["samples"] = ["81", 0]
    return prompt


def with_stock_lora(prompt: dict[str, Any], name: str, strength: float = 1.0) -> dict[str, Any]:
    """A prompt of ``with_stock_sampler`` with a LoRA by the host's own loader."""
    prompt["82"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["80", 0], "lora_name": name, "strength_model": strength},
    }
    prompt["81"]["inputs"]["model"] = ["82", 0]
    return prompt
