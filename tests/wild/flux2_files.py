"""Whole files of FLUX.2, to be damaged."""

from __future__ import annotations

import base64
import json
import random
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from flux_core.checkpoint.own_tokenizer import has_tokenizer, own_tokenizer
from flux_core.models.bpe import byte_letters
from flux_core.models.config import VAEConfig
from flux_core.models.flux2 import Flux2Config
from flux_core.models.language import QWEN3
from flux_core.models.language_encoders import open_language_tokenizer
from flux_core.models.vae import AutoEncoder
from tests import flux2_models, tiny_models

from .mutations import as_json, damaged_bytes, damaged_text, damaged_tree

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


@lru_cache
def tekken() -> Any:
    """A small ``tekken.json``: all bytes, and a few tokens of them."""
    tokens = [*(bytes([byte]) for byte in range(256)), b"th", b"the", b" the"]
    words = [base64.b64encode(token).decode() for token in tokens]
    marks = ["<unk>", "<s>", "[INST]", "<pad>"]
    return {
        "config": {"default_num_special_tokens": 4, "default_vocab_size": 4 + len(tokens)},
        "vocab": [{"rank": rank, "token_bytes": word} for rank, word in enumerate(words)],
        "special_tokens": [{"rank": rank, "token_str": mark} for rank, mark in enumerate(marks)],
    }


def write_tokenizer_inside(folder: Path, rng: random.Random) -> None:
    """Weights with the bytes of one of the two kinds of tokenizers, damaged."""
    whole = json.loads(flux2_models.qwen_tokenizer().backend_tokenizer.to_str())
    name, tree = rng.choice((("tekken_model", tekken()), ("tokenizer_json", whole)))
    if rng.random() < 0.7:
        raw = as_json(damaged_tree(tree, rng))
    else:
        raw = damaged_text(as_json(tree), rng)
    data = torch.frombuffer(bytearray(raw or b" "), dtype=torch.uint8)
    (folder / "m.safetensors").write_bytes(save({name: data}))


def write_gguf_tokenizer(folder: Path, rng: random.Random) -> None:
    """A GGUF header with a tokenizer, of which a list or any byte is damaged."""
    letters = byte_letters()
    tokens = ["<pad>", *(letters[byte] for byte in range(256)), "th", "the"]
    lists: dict[str, Any] = {
        "tokens": tokens,
        "merges": ["t h", "th e"],
        "token_type": [3] + [1] * (len(tokens) - 1),
        "pre": rng.choice(("tekken", "qwen2", "gpt-2")),
    }
    if rng.random() < 0.6:
        words = lists[rng.choice(("tokens", "merges"))]
        for _ in range(rng.randint(1, 3)):
            words[rng.randrange(len(words))] = rng.choice(
                ("", "t", "a z", "a b", "t h e", "x" * 3000)
            )
    raw = gguf_header(lists)
    for _ in range(rng.choice((0, 0, 1, 2))):
        at = rng.randrange(len(raw))
        raw = raw[:at] + bytes([rng.randrange(256)]) + raw[at + 1 :]
    (folder / "m.gguf").write_bytes(damaged_bytes(raw, rng) if rng.random() < 0.1 else raw)


def gguf_header(lists: dict[str, Any]) -> bytes:
    """A GGUF file of a language model without tensors, with a tokenizer's lists."""
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "whole.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        for name, value in lists.items():
            add = writer.add_string if isinstance(value, str) else writer.add_array
            add(f"tokenizer.ggml.{name}", value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def read_tokenizer_inside(folder: Path) -> object:
    """As the loaders do, and used once; what says that it is there opens, or is refused."""
    (path,) = folder.iterdir()
    there, tokenizer = has_tokenizer(path), own_tokenizer(path)
    assert there == (tokenizer is not None)
    return tokenizer and tokenizer("the thing", add_special_tokens=False).input_ids
