"""Byte-level BPE tokenizers of language models, from what files of their weights hold of them.

    text -> parts by a pattern -> bytes -> pairs merged in order of rank -> numbers

Mistral's is told by the bytes of each token alone (``tekken.json``): every way to make a token of
two others is a merge, ranked by the token. Patterns are those that the host splits by.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from ..files import parse_json

#: How text is split before bytes are merged: digits three at a time, or one by one.
TEKKEN_PATTERN, QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("{1,3}", "")
)
#: By what GGUF files call them; Qwen's composes letters with their accents first.
PATTERNS = {"tekken": TEKKEN_PATTERN, "qwen2": QWEN_PATTERN}
COMPOSED = ("qwen2",)
#: Bytes of a token of Mistral's; it is cut in two at every byte, which takes their square.
LONGEST_TOKEN = 512
#: Pairs that are merged, several times those of any; each is kept as two texts.
MOST_MERGES = 2_000_000
#: Numbers of tokens, ten times those of any; tokenizers are copied by going through all of them.
MOST_TOKENS = 2_000_000


def byte_letters() -> dict[int, str]:
    """The letter that stands for each byte: itself where it can be printed, else one above 255."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    letters = {byte: chr(byte) for byte in printed}
    return letters | {byte: chr(256 + number) for number, byte in enumerate(others)}


def byte_level_bpe(
    vocabulary: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    special: Iterable[str],
    split_as: str,
) -> PreTrainedTokenizerFast:
    """A tokenizer of tokens in ``byte_letters`` with their numbers, and merges in order.

    ``special`` tokens are found as they stand; ``split_as`` is a key of ``PATTERNS``. Raises
    ``ValueError`` for a merge whose parts or result are no tokens, and for too many.
    """
    check_count(merges)
    for first, second in merges:
        for part in (first, second, first + second):
            if part not in vocabulary:
                raise ValueError(f"merges {first!r} with {second!r}, and {part!r} is no token")
    inner = Tokenizer(tokenizer_models.BPE(dict(vocabulary), list(merges)))
    if split_as in COMPOSED:
        inner.normalizer = normalizers.NFC()  # type: ignore[assignment]
    inner.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(PATTERNS[split_as]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    inner.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    return wrapped(inner)


def check_count(merges: Sequence[object]) -> None:
    """Raise ``ValueError`` for more merges than ``MOST_MERGES``."""
    if len(merges) > MOST_MERGES:
        raise ValueError(f"merges more than {MOST_MERGES} pairs of tokens")


def wrapped(inner: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer as ``transformers`` has it.

    Raises ``ValueError`` where its tokens have numbers beyond ``MOST_TOKENS``.
    """
    highest = max(inner.get_vocab().values(), default=0)
    if highest >= MOST_TOKENS:
        raise ValueError(f"has a token of the number {highest}, expected less than {MOST_TOKENS}")
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def from_tekken(data: bytes) -> PreTrainedTokenizerFast:
    """Mistral's tokenizer from the bytes of its ``tekken.json``.

    Raises ``ValueError``, ``KeyError`` or ``TypeError`` for what is none.
    """
    tree: dict[str, Any] = parse_json(data)
    config, letters = tree["config"], byte_letters()
    first = int(config["default_num_special_tokens"])
    count = int(config["default_vocab_size"]) - first
    ranks = {
        base64.b64decode(entry["token_bytes"]): int(entry["rank"])
        for entry in tree["vocab"]
        if int(entry["rank"]) < count
    }
    special = {str(entry["token_str"]): int(entry["rank"]) for entry in tree["special_tokens"]}
    longest = max(map(len, ranks), default=0)
    if longest > LONGEST_TOKEN:
        raise ValueError(f"has a token of {longest} bytes, expected {LONGEST_TOKEN} at most")
    spelled = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [(ranks[a], ranks[b], a, b) for a, b in splits if a in ranks and b in ranks]
        merges += [(spelled[a], spelled[b]) for _, _, a, b in sorted(known)]
        check_count(merges)
    vocabulary = {spelled[token]: first + rank for token, rank in ranks.items()}
    ordered = sorted(special, key=special.__getitem__)
    return byte_level_bpe(vocabulary | special, merges, ordered, "tekken")


def from_lists(
    tokens: Sequence[str], special: Iterable[str], merges: Sequence[str], split_as: str
) -> PreTrainedTokenizerFast:
    """A tokenizer from lists as GGUF files have them: tokens by their numbers, and merges as two
    tokens with a space between them; errors as ``byte_level_bpe``."""
    pairs = [merge.split(" ", 1) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("has merges that are not two tokens")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return byte_level_bpe(vocabulary, [(a, b) for a, b in pairs], special, split_as)
