"""CLIP-L and T5 against transformers, and the cache of prompts."""

from __future__ import annotations

import pytest
import torch

from flux_core import (
    FluxPipeline,
    load_clip_l,
    load_t5,
)
from tests import tiny_models


def test_the_oldest_prompts_are_forgotten(monkeypatch):
    monkeypatch.setattr("flux_core.models.text_encoders.CACHED_PROMPTS", 2)
    encoders = FluxPipeline.from_pocket().text_encoders
    for prompt in ("a", "b", "c"):
        encoders.encode_cached(prompt)
    assert encoders.cached("a") is None and encoders.cached("c") is not None


def clip_model():
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=298,
        eos_token_id=299,
        pad_token_id=299,
    )
    return tiny_models.randomise(CLIPTextModel(config))


def t5_model():
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=200,
        d_model=48,
        d_kv=32,
        d_ff=96,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    return tiny_models.randomise(T5EncoderModel(config))


@pytest.mark.parametrize("prefix", ["", "text_encoders.clip_l.transformer."])
def test_clip_equals_transformers(prefix, tmp_path):
    theirs = clip_model()
    state = {
        "text_model." + k.removeprefix("text_model."): v for k, v in theirs.state_dict().items()
    }
    ours = load_clip_l(
        tiny_models.save(state, tmp_path / "c.safetensors", prefix), precision="fp32"
    )
    ids = torch.randint(0, 290, (3, 77), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[0, 9:], ids[1, 40:], ids[2, 76:] = 298, 299, 299, 299
    with torch.no_grad():
        assert tiny_models.relative(ours(ids), theirs(input_ids=ids).pooler_output) < 1e-5


@pytest.mark.parametrize("prefix", ["", "text_encoders.t5xxl.transformer."])
@pytest.mark.parametrize("embedding", ["shared.weight", "encoder.embed_tokens.weight", "both"])
def test_t5_equals_transformers(prefix, embedding, tmp_path):
    theirs = t5_model()
    state = dict(theirs.state_dict())
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    if embedding != "both":
        other = {"shared.weight", "encoder.embed_tokens.weight"} - {embedding}
        state.pop(other.pop())
    ours = load_t5(tiny_models.save(state, tmp_path / "t.safetensors", prefix), precision="fp32")
    ids = torch.randint(0, 200, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert tiny_models.relative(ours(ids), theirs(input_ids=ids).last_hidden_state) < 1e-5
