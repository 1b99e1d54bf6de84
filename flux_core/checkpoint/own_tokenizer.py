"""The tokenizer that a file of a language model's weights holds itself, in one of three ways:

tekken_model      the host's single files of Mistral: the bytes of its tekken.json
tokenizer_json    the bytes of a tokenizer.json
GGUF              tokens, merges and kinds of tokens in its header
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ..errors import CheckpointError
from ..files import LARGEST_TOKENIZER, reading
from ..models.bpe import PATTERNS, from_lists, from_tekken, wrapped
from ..models.language_encoders import find_language_tokenizer
from .gguf import GGUFFile
from .reader import open_source
from .source import Source

TEKKEN, WHOLE = "tekken_model", "tokenizer_json"
#: GGUF's kinds of tokens that stand for themselves: control, and what people added.
SPECIAL_KINDS = (3, 4)
TOKENS, MERGES, KINDS, SPLIT = (
    f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "token_type", "pre")
)

#: What errors call it.
TOKENIZER_INSIDE = "the tokenizer inside of this file"


def place_of(source: Source) -> str | None:
    """Where a file holds its tokenizer: the full name of a tensor of bytes, under whatever prefix,
    or of a GGUF header's list of tokens. None where there is none that can be read.

    Nothing of the tokenizer itself is read.
    """
    if isinstance(source, GGUFFile):
        return TOKENS if has_lists(source) and source.word(SPLIT) in PATTERNS else None
    names = {full.split(".")[-1]: full for full in source.entries}
    return names.get(TEKKEN) or names.get(WHOLE)


def has_lists(source: GGUFFile) -> bool:
    """Whether a GGUF header holds a tokenizer of bytes, of whatever split."""
    return source.has_strings(TOKENS) and source.has_strings(MERGES)


def has_tokenizer(path: str | Path) -> bool:
    """Whether a file of weights holds its tokenizer, as ``own_tokenizer`` opens it."""
    source = open_source(path)
    with reading(path, TOKENIZER_INSIDE):
        return place_of(source) is not None


def own_tokenizer(path: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer inside of a file of weights, None where there is none that can be read.

    Raises ``CheckpointError`` naming the file where it is broken.
    """
    source = open_source(path)
    with reading(path, TOKENIZER_INSIDE):
        place = place_of(source)
        if place is None:
            return None
        if isinstance(source, GGUFFile):
            return of_gguf(source)
        size = source.entries[place].size
        if size > LARGEST_TOKENIZER:
            most = f"{LARGEST_TOKENIZER // 1_000_000} MB"
            raise CheckpointError(f"{path}: {place!r} has {size} bytes, expected {most} at most")
        data = source.read(place).numpy().tobytes()
        if place.split(".")[-1] == TEKKEN:
            return from_tekken(data)
        return wrapped(Tokenizer.from_buffer(data))


def of_gguf(source: GGUFFile) -> PreTrainedTokenizerBase:
    """The tokenizer of a GGUF file's header, which has one."""
    tokens, merges = source.strings(TOKENS) or [], source.strings(MERGES) or []
    kinds = source.numbers(KINDS) or [1] * len(tokens)
    if len(kinds) != len(tokens):
        raise ValueError(f"has {len(tokens)} tokens, and {len(kinds)} kinds of them ({KINDS})")
    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind in SPECIAL_KINDS]
    return from_lists(tokens, special, merges, source.word(SPLIT))


def folder_for(path: str | Path) -> Path:
    """The tokenizer's folder for a file that holds none that can be read.

    Raises ``FileNotFoundError`` saying where it was looked for, ``CheckpointError`` where the file
    holds a tokenizer that splits text in a way that is not known.
    """
    try:
        return find_language_tokenizer(path)
    except FileNotFoundError as error:
        source = open_source(path)
        if not (isinstance(source, GGUFFile) and has_lists(source)):
            raise
        word = source.word(SPLIT)
        how = f"splits text as {word!r}" if word else f"does not say how to split text ({SPLIT})"
        raise CheckpointError(
            f"{path}: the tokenizer inside of this file {how}, expected {' or '.join(PATTERNS)}: "
            "put the folder 'tokenizer' of the model's repository beside the file"
        ) from error
