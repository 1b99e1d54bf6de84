"""Whole files of FLUX.2, to be damaged."""

from __future__ import annotations

import json
import random
from functools import lru_cache
from pathlib import Path

from safetensors.torch import save

from flux_core.models.config import VAEConfig
from flux_core.models.flux2 import Flux2Config
from flux_core.models.language import QWEN3
from flux_core.models.language_encoders import open_language_tokenizer
from flux_core.models.vae import AutoEncoder
from tests import flux2_models, tiny_models

from .mutations import as_json, damaged_text, damaged_tree

SMALLEST = Flux2Config(
    context_in_dim=8, hidden_size=128, depth=1, depth_single_blocks=1, mlp_ratio=1.0
)
TINY_VAE = VAEConfig(
    ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=32, patch=2, quant_conv=True
)


@lru_cache
def flux2_bytes() -> bytes:
    return save(dict(flux2_models.transformer(SMALLEST).state_dict()))


@lru_cache
def flux2_vae_bytes() -> bytes:
    return save(dict(tiny_models.randomise(AutoEncoder(TINY_VAE)).state_dict()))


@lru_cache
def language_bytes() -> bytes:
    return save(dict(flux2_models.qwen_model().state_dict()))


def write_language_tokenizer(folder: Path, rng: random.Random) -> None:
    flux2_models.qwen_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer.json"
    raw = path.read_bytes()
    if rng.random() < 0.7:
        path.write_bytes(as_json(damaged_tree(json.loads(raw), rng)))
    else:
        path.write_bytes(damaged_text(raw, rng))


def read_language_tokenizer(folder: Path) -> object:
    return open_language_tokenizer(folder, QWEN3)
