"""Tokenizers inside of files of language models, against merging bytes by rank by hand."""

from __future__ import annotations

import base64
import json
import logging
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flux_core import CheckpointError, load_language_encoders
from flux_core.checkpoint.gguf import GGUFFile
from flux_core.checkpoint.own_tokenizer import has_tokenizer, own_tokenizer
from flux_core.models.bpe import (
    PATTERNS,
    byte_letters,
    from_lists,
    from_tekken,
)
from flux_core.models.language import MISTRAL, QWEN3
from flux_core.models.language_encoders import open_language_tokenizer
from flux_core.models.tokenizers import Tokenizers
from tests import flux2_models, tiny_models

regex = pytest.importorskip("regex")

SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
FIRST = 12  # numbers that are kept for special tokens
MARKS: dict[int, str] = dict(enumerate((*SPECIAL, "<pad>")))
LEARNED = "the other cat's hat, that there 1234 25  an\n\n  Ünder ünder [INST] it'll the thing 日本"
TEXTS = (
    LEARNED,
    "",
    " the",
    "The the they'RE  other\t\tcat 20250 x1y22\r\n\r\n end   ",
    "<s>[INST]that the</s>",
    "naïve 日本語 \u2013 “q” 🦊🦊 e\u0301",
)


def learned_ranks() -> dict[bytes, int]:
    """All bytes, and two dozen of the most frequent pairs of a text."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    parts = [
        [bytes([b]) for b in part.encode()] for part in regex.findall(PATTERNS["tekken"], LEARNED)
    ]
    for _ in range(24):
        counts: dict[bytes, int] = {}
        for part in parts:
            for pair in pairwise(part):
                counts[b"".join(pair)] = counts.get(b"".join(pair), 0) + 1
        best = max(sorted(counts), key=counts.__getitem__)
        ranks[best] = len(ranks)
        parts = [merged(part, best) for part in parts]
    return ranks


def merged(part: list[bytes], token: bytes) -> list[bytes]:
    out: list[bytes] = []
    for piece in part:
        if out and out[-1] + piece == token:
            out[-1] = token
        else:
            out.append(piece)
    return out


def by_hand(ranks: dict[bytes, int], text: str, split_as: str = "tekken") -> list[int]:
    """Numbers of a text: the pair of the lowest rank is merged until there is none."""
    numbers: list[int] = []
    known = {token: rank for rank, token in MARKS.items()}
    pieces = regex.split("(" + "|".join(map(regex.escape, known)) + ")", text)
    for piece in pieces:
        if piece in known:
            numbers.append(known[piece])
            continue
        for part in regex.findall(PATTERNS[split_as], piece):
            tokens = [bytes([byte]) for byte in part.encode()]
            while True:
                pairs = [a + b for a, b in pairwise(tokens) if a + b in ranks]
                if not pairs:
                    break
                tokens = merged(tokens, min(pairs, key=ranks.__getitem__))
            numbers += [FIRST + ranks[token] for token in tokens]
    return numbers


def tekken() -> bytes:
    """As Mistral publishes it; what is behind the vocabulary's size does not count."""
    ranks = learned_ranks()
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in ranks.items()
    ]
    beyond = {"rank": len(ranks), "token_bytes": base64.b64encode(b"zz").decode()}
    special = [{"rank": r, "token_str": t, "is_control": True} for r, t in MARKS.items()]
    config = {"default_num_special_tokens": FIRST, "default_vocab_size": FIRST + len(ranks)}
    tree = {"config": config, "vocab": [*entries, beyond], "special_tokens": special}
    return json.dumps(tree).encode()


def as_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def numbers_of(tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_are_merged_by_rank(text):
    tokenizer, ranks = from_tekken(tekken()), learned_ranks()
    assert numbers_of(tokenizer, text) == by_hand(ranks, text)
    assert tokenizer.decode(numbers_of(tokenizer, text)) == text
    assert len(tokenizer.get_vocab()) == len(ranks) + len(MARKS)


def test_the_letters_of_bytes_are_those_of_gpt_2():
    from tokenizers.pre_tokenizers import ByteLevel

    letters = byte_letters()
    assert sorted(letters.values()) == sorted(ByteLevel.alphabet())
    assert [letters[b] for b in b" \nA\xad"] == ["Ġ", "Ċ", "A", "Ń"]


@pytest.fixture(scope="module")
def mistral() -> dict[str, Tensor]:
    return flux2_models.mistral_model().state_dict()


@pytest.fixture(scope="module")
def single_file(mistral, tmp_path_factory) -> Path:
    """The host's: weights and the tokenizer's bytes."""
    state = mistral | {"tekken_model": as_tensor(tekken())}
    return tiny_models.save(state, tmp_path_factory.mktemp("single") / "mistral.safetensors")


def context(path: Path, **options) -> Tensor:
    return load_language_encoders(path, precision="fp32", **options).encode(["the cat"]).context


def test_the_host_s_single_file_needs_no_folder(single_file, mistral, tmp_path, caplog):
    from_tekken(tekken()).save_pretrained(tmp_path / "tokenizer")
    path = tiny_models.save(mistral, tmp_path / "mistral.safetensors")
    assert has_tokenizer(single_file) and not has_tokenizer(path)
    expected = context(path)
    caplog.set_level(logging.WARNING)
    assert torch.equal(context(single_file), expected)
    bare = {name.removeprefix("model."): value for name, value in mistral.items()}
    bare["tekken_model"] = as_tensor(tekken())
    assert torch.equal(
        context(tiny_models.save(bare, tmp_path / "b" / "bare.safetensors")), expected
    )
    assert not caplog.records  # a tokenizer is no surprise
    assert torch.equal(context(single_file, tokenizer=tmp_path / "tokenizer"), expected)
    inside = {"tokenizer_json": as_tensor((tmp_path / "tokenizer" / "tokenizer.json").read_bytes())}
    whole = tiny_models.save(mistral | inside, tmp_path / "w" / "whole.safetensors")
    assert torch.equal(context(whole), expected)


def test_a_tokenizer_that_is_broken_or_another_s_is_named(mistral, tmp_path):
    for number, (name, data, wrong) in enumerate(
        (
            ("tekken_model", b"{", r"0\.safetensors: cannot be read as the tokenizer inside"),
            ("tekken_model", b'{"vocab": []}', r"1\.safetensors: .*config"),
            ("tokenizer_json", b"{}", r"2\.safetensors: cannot be read"),
            (
                "tekken_model",
                tekken().replace(b"<pad>", b"<pat>"),
                r"3\.safetensors: the tokenizer has no '<pad>': it is not that of Mistral Small",
            ),
        )
    ):
        path = tmp_path / f"{number}.safetensors"
        tiny_models.save(mistral | {name: as_tensor(data)}, path)
        with pytest.raises(CheckpointError, match=wrong):
            load_language_encoders(path)


#: Merges of a vocabulary of "a", "b", "c" and "ab", and what is no token of each.
WRONG_MERGES = {"a c": "ac", "b a": "ba", "a d": "d", "d a": "d", "ab a": "aba", "a ": ""}


@pytest.mark.parametrize("merge", WRONG_MERGES)
@pytest.mark.parametrize("split_as", PATTERNS)
def test_merges_of_what_is_no_token_are_refused(merge, split_as):
    tokens = ["a", "b", "c", "ab"]
    assert numbers_of(from_lists(tokens, [], ["a b"], split_as), "ab") == [3]
    with pytest.raises(ValueError, match=f"merges .* and '{WRONG_MERGES[merge]}' is no token"):
        from_lists(tokens, [], ["a b", merge], split_as)


def test_a_library_s_panic_names_the_file(tmp_path):
    """A merge into no token panics inside of the library, from whatever file it comes."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}
    data = json.dumps({"version": "1.0", "added_tokens": [], "model": model}).encode()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(data)
    inside = {"tokenizer_json": as_tensor(data)}
    path = tiny_models.save(inside, tmp_path / "whole.safetensors")
    with pytest.raises(CheckpointError, match=r"whole\.safetensors: cannot be read as the token"):
        own_tokenizer(path)
    for kind in (QWEN3, MISTRAL):
        with pytest.raises(CheckpointError, match="tokenizer: cannot be read as a tokenizer"):
            open_language_tokenizer(tmp_path / "tokenizer", kind)
    with pytest.raises(CheckpointError, match="tokenizer: cannot be read as a tokenizer"):
        Tokenizers.load(tmp_path / "tokenizer", tmp_path / "tokenizer")


class TestGGUF:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("gguf")

    def renamed(self, state: dict[str, Tensor], turned: bool) -> dict[str, Tensor]:
        """Tensors as llama.cpp writes them; ``turned``: pairs of rows of q and k beside each
        other."""
        from flux_core.checkpoint.gguf import QWEN_BLOCK, QWEN_NAMES

        blocks = {ours: theirs for theirs, ours in QWEN_BLOCK.items()}
        names = {ours: theirs for theirs, ours in QWEN_NAMES.items()}
        result = {}
        for name, value in state.items():
            stem, _, kind = name.removeprefix("model.").rpartition(".")
            if not stem.startswith("layers."):
                result[f"{names[stem]}.{kind}"] = value
                continue
            _, number, inner = stem.split(".", 2)
            if turned and inner in ("self_attn.q_proj", "self_attn.k_proj"):
                rows = [
                    h * 128 + half * 64 + i
                    for h in range(len(value) // 128)
                    for i in range(64)
                    for half in (0, 1)
                ]
                value = value[rows]
            result[f"blk.{number}.{blocks[inner]}.{kind}"] = value
        return result

    def lists(self, split_as: str, marks: dict[int, str]) -> dict[str, object]:
        letters, ranks = byte_letters(), learned_ranks()
        tokens = [marks.get(i, f"<kept{i}>") for i in range(FIRST)]
        tokens += ["".join(letters[b] for b in token) for token in ranks]
        merges = []
        for token in list(ranks)[256:]:
            splits = [(token[:i], token[i:]) for i in range(1, len(token))]
            known = [(ranks[a], ranks[b], a, b) for a, b in splits if a in ranks and b in ranks]
            for _, _, a, b in sorted(known):
                merges.append(" ".join("".join(letters[x] for x in half) for half in (a, b)))
        kinds = [3] * FIRST + [1] * len(ranks)
        return {
            "tokenizer__ggml__tokens": tokens,
            "tokenizer__ggml__merges": merges,
            "tokenizer__ggml__token_type": kinds,
            "tokenizer__ggml__pre": split_as,
        }

    def write(self, path: Path, state, architecture: str, lists) -> Path:
        from tests.flux_core.checkpoint.test_gguf import write

        return Path(write(path, state, "F16", architecture, **lists))

    @pytest.mark.parametrize("architecture", ["llama", "mistral3"])
    def test_mistral(self, architecture, mistral, single_file, tmp_path):
        lists = self.lists("tekken", MARKS)
        state = self.renamed(mistral, turned=True)
        path = self.write(tmp_path / "m.gguf", state, architecture, lists)
        assert has_tokenizer(path)
        tokenizer, ranks = own_tokenizer(path), learned_ranks()
        assert all(numbers_of(tokenizer, text) == by_hand(ranks, text) for text in TEXTS)
        assert tiny_models.relative(context(path), context(single_file)) < 0.01

    def test_qwen(self, tmp_path):
        marks = {0: QWEN3.pad, 1: "<|im_start|>", 2: "<|im_end|>", 3: "<think>", 4: "</think>"}
        state = self.renamed(flux2_models.qwen_model().state_dict(), turned=False)
        path = self.write(tmp_path / "q.gguf", state, "qwen3", self.lists("qwen2", marks))
        tokenizer, ranks = own_tokenizer(path), learned_ranks()
        for text in ("the other 1234", "cat's  hat\n"):
            assert numbers_of(tokenizer, text) == by_hand(ranks, text, "qwen2")
        assert numbers_of(tokenizer, "e\u0301") == numbers_of(tokenizer, "\u00e9")
        assert context(path).isfinite().all()

    @pytest.mark.parametrize(
        "split_as, how",
        [
            ("llama-bpe", "splits text as 'llama-bpe'"),
            ("Tekken", "splits text as 'Tekken'"),
            ("", "does not say how to split text"),
            (None, "does not say how to split text"),
            (5, "splits text as '5'"),
        ],
    )
    def test_another_way_to_split_takes_the_folder_or_is_named(
        self, split_as, how, mistral, single_file, tmp_path
    ):
        lists = self.lists("tekken", MARKS) | {"tokenizer__ggml__pre": split_as}
        lists = {name: value for name, value in lists.items() if value is not None}
        state = self.renamed(mistral, turned=True)
        path = self.write(tmp_path / "m.gguf", state, "llama", lists)
        assert not has_tokenizer(path) and own_tokenizer(path) is None
        with pytest.raises(CheckpointError, match=rf"m\.gguf: .*{how}.*, expected .*qwen2: put"):
            load_language_encoders(path)
        from_tekken(tekken()).save_pretrained(tmp_path / "tokenizer")
        assert tiny_models.relative(context(path), context(single_file)) < 0.01

    @pytest.mark.parametrize("lacks", ["tokens", "merges"])
    def test_half_a_tokenizer_is_none(self, lacks, mistral, tmp_path):
        lists = self.lists("tekken", MARKS)
        del lists[f"tokenizer__ggml__{lacks}"]
        path = self.write(tmp_path / "m.gguf", self.renamed(mistral, turned=True), "llama", lists)
        assert not has_tokenizer(path) and own_tokenizer(path) is None
        with pytest.raises(FileNotFoundError, match="no tokenizer for"):
            load_language_encoders(path)

    @pytest.mark.parametrize(
        "text, finds",
        [("<kept8>", True), ("[INST]", True), ("tekken", False)],
        ids=["tokens", "special", "split"],
    )
    def test_letters_that_are_none_name_the_file(self, text, finds, tmp_path, monkeypatch):
        path = self.write(tmp_path / "m.gguf", {}, "llama", self.lists("tekken", MARKS))
        raw = path.read_bytes()
        assert raw.count(text.encode()) == 1
        path.write_bytes(raw.replace(text.encode(), b"\xff" * len(text)))
        with pytest.raises(CheckpointError, match=r"m\.gguf: cannot be read as the tokenizer"):
            own_tokenizer(path)
        monkeypatch.setattr(GGUFFile, "strings", None)  # not read to say that they are there
        if finds:
            assert has_tokenizer(path)
        else:
            with pytest.raises(CheckpointError, match=r"m\.gguf: cannot be read as the tokeniz"):
                has_tokenizer(path)
