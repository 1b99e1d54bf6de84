"""What a tokenizer inside of a file may be at most."""

from __future__ import annotations

import base64
import json

import pytest

from flux_core import CheckpointError
from flux_core.checkpoint.own_tokenizer import own_tokenizer
from flux_core.models.bpe import LONGEST_TOKEN, MOST_TOKENS, from_tekken
from tests import tiny_models
from tests.flux_core.models.test_bpe import (
    FIRST,
    LEARNED,
    as_tensor,
    by_hand,
    learned_ranks,
    numbers_of,
    tekken,
)


def with_token(token: bytes) -> bytes:
    """``tekken`` with one more token."""
    tree = json.loads(tekken())
    tree["vocab"][-1]["token_bytes"] = base64.b64encode(token).decode()
    tree["config"]["default_vocab_size"] += 1
    return json.dumps(tree).encode()


def test_tokens_have_a_longest():
    longest = from_tekken(with_token(b"x" * LONGEST_TOKEN))
    assert "x" * LONGEST_TOKEN in longest.get_vocab()
    for length in (LONGEST_TOKEN + 1, 5_000, 2_000_000):
        with pytest.raises(ValueError, match=f"a token of {length} bytes, expected 512 at most"):
            from_tekken(with_token(b"x" * length))


def test_merges_have_an_end(monkeypatch):
    """Every part of one long text is a token, so that every way to cut each of them is a merge."""
    text = bytes(range(256))
    tree = json.loads(tekken())
    parts = {text[i : i + n]: None for n in range(1, 40) for i in range(257 - n)}
    tree["vocab"] = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode()}
        for rank, token in enumerate(parts)
    ]
    tree["config"]["default_vocab_size"] = FIRST + len(parts)
    count = sum((len(token) - 1) for token in parts)
    for most in (count, count - 1):
        monkeypatch.setattr("flux_core.models.bpe.MOST_MERGES", most)
        if most == count:
            assert len(from_tekken(json.dumps(tree).encode())) > len(parts)
            continue
        with pytest.raises(ValueError, match=f"merges more than {most} pairs"):
            from_tekken(json.dumps(tree).encode())


@pytest.mark.parametrize("number", [MOST_TOKENS, 2**31])
def test_numbers_of_tokens_have_an_end(number, tmp_path):
    whole = json.loads(from_tekken(tekken()).backend_tokenizer.to_str())
    whole["model"]["vocab"]["zz"] = number
    shifted, special = json.loads(tekken()), json.loads(tekken())
    shifted["config"] = {
        "default_num_special_tokens": number,
        "default_vocab_size": number + len(learned_ranks()),
    }
    special["special_tokens"][-1]["rank"] = number
    for place, (name, tree) in enumerate(
        (("tokenizer_json", whole), ("tekken_model", shifted), ("tekken_model", special))
    ):
        inside = {name: as_tensor(json.dumps(tree).encode())}
        path = tiny_models.save(inside, tmp_path / f"{place}.safetensors")
        with pytest.raises(
            CheckpointError, match=rf"{place}\.safetensors: .* the number {str(number)[:4]}"
        ):
            own_tokenizer(path)


@pytest.mark.parametrize("name", ["tekken_model", "tokenizer_json", "inner.tokenizer_json"])
def test_a_tokenizer_s_bytes_have_a_largest(name, tmp_path, monkeypatch):
    from flux_core.checkpoint import own_tokenizer as module

    data = tekken()
    if name != "tekken_model":
        data = from_tekken(data).backend_tokenizer.to_str().encode()
    path = tiny_models.save({name: as_tensor(data)}, tmp_path / "m.safetensors")
    assert numbers_of(own_tokenizer(path), LEARNED) == by_hand(learned_ranks(), LEARNED)
    monkeypatch.setattr(module, "LARGEST_TOKENIZER", len(data) - 1)
    with pytest.raises(CheckpointError, match=rf"m\.safetensors: '{name}' has {len(data)} bytes"):
        own_tokenizer(path)
