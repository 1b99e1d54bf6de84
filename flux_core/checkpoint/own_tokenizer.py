"""The tokenizer that a file of a language model's weights holds itself, in one of three ways:

tekken_model      the host's single files of Mistral: the bytes of its tekken.json
tokenizer_json    the bytes of a tokenizer.json
GGUF              tokens, merges and kinds of tokens in its header
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..files import reading
from ..models.bpe import from_lists, from_tekken
from .gguf import GGUFFile
from .reader import open_source
from .source import Source

TEKKEN, WHOLE = "tekken_model", "tokenizer_json"
#: GGUF's kinds of tokens that stand for themselves: control, and what people added.
SPECIAL_KINDS = (3, 4)
TOKENS, MERGES, KINDS, SPLIT = (
    f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "token_type", "pre")
)


def place_of(source: Source, name: str) -> str | None:
    """The full name of a tensor of bytes, under whatever prefix; None where there is none."""
    return next((full for full in source.entries if full.split(".")[-1] == name), None)


def has_tokenizer(path: str | Path) -> bool:
    """Whether a file of weights holds its tokenizer."""
    source = open_source(path)
    if isinstance(source, GGUFFile):
        return source.strings(TOKENS) is not None and source.strings(MERGES) is not None
    return any(place_of(source, name) is not None for name in (TEKKEN, WHOLE))


def own_tokenizer(path: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer inside of a file of weights, None where there is none.

    Raises ``CheckpointError`` naming the file where it is broken.
    """
    source = open_source(path)
    with reading(path, "the tokenizer inside of this file"):
        if isinstance(source, GGUFFile):
            return of_gguf(source)
        for name in (TEKKEN, WHOLE):
            full = place_of(source, name)
            if full is None:
                continue
            data = source.read(full).numpy().tobytes()
            if name == TEKKEN:
                return from_tekken(data)
            from tokenizers import Tokenizer

            return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_buffer(data))
    return None


def of_gguf(source: GGUFFile) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a GGUF file's header, None where it has none of bytes."""
    tokens, merges = source.strings(TOKENS), source.strings(MERGES)
    if tokens is None or merges is None:
        return None
    kinds = source.numbers(KINDS) or [1] * len(tokens)
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind in SPECIAL_KINDS]
    return from_lists(tokens, special, merges, source.word(SPLIT))
