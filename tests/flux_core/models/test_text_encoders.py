"""CLIP-L and T5 against transformers, and the cache of prompts."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import save_file

from flux_core import (
    FluxPipeline,
    load_clip_l,
    load_t5,
    load_text_encoders,
)
from flux_core.pocket import pocket_file
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


@pytest.fixture(scope="module")
def encoders():
    clip, t5 = pocket_file("text_encoders", "_clip_l"), pocket_file("text_encoders", "_t5")
    return load_text_encoders(clip, t5, precision="fp32")


class TestPrompts:
    """Weights, embeddings and long prompts."""

    def test_a_weight_moves_words_away_from_an_empty_prompt(self, encoders):
        plain = encoders.encode(["a red circle"])
        empty = encoders.encode([""]).context
        weighted = encoders.encode(["(a red circle:1.5)"])
        count = len(encoders.tokenizers.t5("a red circle", add_special_tokens=False).input_ids)
        expected = plain.context.clone()
        expected[:, :count] += 0.5 * (plain.context - empty)[:, :count]
        torch.testing.assert_close(weighted.context, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(weighted.pooled, plain.pooled)

    def test_a_weight_of_one_and_brackets_that_are_meant_change_nothing(self, encoders):
        plain = encoders.encode(["a red circle"])
        for prompt in ("(a red circle:1)", "((a red circle:1.0))"):
            torch.testing.assert_close(encoders.encode([prompt]).context, plain.context)
        meant = encoders.encode([r"a \(red\) circle"])
        letters = encoders.encode(["a (red) circle"], literal=True)
        torch.testing.assert_close(meant.context, letters.context)
        assert not torch.equal(meant.context, encoders.encode(["a (red) circle"]).context)

    @pytest.mark.parametrize("prompt", ["{}", "({}:1.1)"])
    def test_t5_reads_all_of_a_long_prompt(self, prompt, encoders):
        length = encoders.tokenizers.t5_length
        start = encoders.encode([prompt.format("a red circle " * length)])
        assert start.context.shape[1] > length
        cut = encoders.encode(["a red circle " * length], literal=True)
        assert cut.context.shape[1] == length
        assert encoders.encode([prompt.format("a")], t5_length=8).context.shape[1] == 8

    def test_the_tokens_of_a_run_are_counted(self, encoders):
        prompts = ["a red circle", "(a red circle:1.2)", "a red circle " * 100]
        counts = [encoders.tokens_at_once([prompt], 16) for prompt in prompts]
        long = encoders.encode(prompts[2:], t5_length=16).context.shape[1]
        assert counts == [16, 32, long] and encoders.tokens_at_once(prompts, 16) == max(counts)
        assert encoders.tokens_at_once(prompts, 16, literal=True) == 16

    def test_an_embedding_is_the_words_that_it_stands_for(self, encoders, tmp_path):
        tensors = {}
        for key, encoder, tokenizer in (
            ("clip_l", encoders.clip_l, encoders.tokenizers.clip_l),
            ("t5xxl", encoders.t5, encoders.tokenizers.t5),
        ):
            ids = tokenizer("red circle", add_special_tokens=False).input_ids
            tensors[key] = encoder.table.weight[ids].clone()
        path = tmp_path / "thing.safetensors"
        save_file(tensors, path)
        encoders.embedding_folders = (tmp_path,)
        for prompt, words in (
            ("a embedding:thing on blue", "a red circle on blue"),
            ("(embedding:thing:1.3) here", "(red circle:1.3) here"),
        ):
            named, written = encoders.encode_cached(prompt), encoders.encode_cached(words)
            torch.testing.assert_close(named.context, written.context)
            torch.testing.assert_close(named.pooled, written.pooled)
        save_file({k: -v for k, v in tensors.items()}, path)
        os.utime(path, ns=(1, 1))
        assert encoders.cached("a embedding:thing on blue") is None, "the file is another"
        save_file({"clip_g": torch.zeros(2, 7)}, tmp_path / "wide.safetensors")
        with pytest.raises(ValueError, match=r"wide\.safetensors: has vectors of \[7\]"):
            encoders.encode_cached("embedding:wide")
        with pytest.raises(FileNotFoundError, match="no embedding 'other'"):
            encoders.encode_cached("embedding:other")

    def test_captions_are_read_as_they_stand(self, encoders):
        caption = "a cat (black) embedding:x"
        literal = encoders.encode_cached(caption, literal=True)
        assert encoders.cached(caption, literal=True) is literal
