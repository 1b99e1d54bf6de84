"""The two tokenizers: folders of the Hugging Face layout, opened and checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]  (T5Tokenizer in 5.x)
)

from ..bounds import check_number
from ..errors import CheckpointError
from ..files import read_json, reading
from .prompt import refuse_long, whole_letters

log = logging.getLogger(__name__)

#: The longest T5 context that FLUX.1 was trained with (dev; schnell takes 256).
T5_LENGTH = 512
#: Tokens that a tokenizer may have beside its own; T5 has 100.
MOST_EXTRA = 10_000


@dataclass(frozen=True)
class Tokenizers:
    """The two tokenizers, or T5's alone; ``t5_length`` is the context length that they are made
    for."""

    clip_l: PreTrainedTokenizerBase | None
    t5: PreTrainedTokenizerBase

    @property
    def t5_length(self) -> int:
        """Tokens of context by default."""
        return min(T5_LENGTH, int(self.t5.model_max_length))

    @classmethod
    def load(cls, clip_l: str | Path | None, t5: str | Path) -> Tokenizers:
        """Open two folders of the Hugging Face layout, or T5's alone.

        Raises ``CheckpointError`` naming the folder where one is missing, or is none.
        """
        marks = ("bos", "eos", "pad")
        return cls(
            None
            if clip_l is None
            else open_tokenizer(Path(clip_l), CLIPTokenizer, "vocab.json", marks),
            open_tokenizer(Path(t5), T5TokenizerFast, "spiece.model", ("eos", "pad")),
        )


def open_tokenizer(
    folder: Path, kind: Any, wanted: str, marks: Sequence[str]
) -> PreTrainedTokenizerBase:
    """A tokenizer of a folder, with the marks that prompts are put between."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", wanted)):
        raise CheckpointError(f"{folder}: expected tokenizer.json or {wanted}, found neither")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            refuse_endless(folder / name)
    with reading(folder, "a tokenizer"):
        tokenizer = kind.from_pretrained(str(folder), local_files_only=True)
        for mark in marks:
            number = getattr(tokenizer, f"{mark}_token_id")
            if type(number) is not int:
                raise CheckpointError(f"{folder}: the tokenizer has no {mark} token")
        check_number(tokenizer.model_max_length, f"{folder}: model_max_length", 1)
        tokenizer("a", verbose=False)
    return tokenizer


def refuse_endless(path: Path) -> None:
    """Raise ``CheckpointError`` for a tokenizer's settings that ask for tokens without end."""
    settings = read_json(path, "a tokenizer's settings", CheckpointError)
    extra = settings.get("extra_ids", 0) if isinstance(settings, dict) else 0
    check_number(extra, f"{path}: extra_ids", 0, MOST_EXTRA, whole=True, error=CheckpointError)


def token_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    length: int,
    name: str,
    cut: bool = True,
) -> Tensor:
    """Token numbers (B, N), padded to ``length``, or cut to it, which is logged."""
    prompts = [whole_letters(prompt) for prompt in prompts]
    longest = longest_of(tokenizer, prompts, length, name, cut)
    length = length if cut else max(length, longest)
    return tokenizer(
        prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids


def cut_ids(tokenizer: PreTrainedTokenizerBase, prompt: str, length: int, name: str) -> list[int]:
    """Token numbers of a prompt with its end, the first ``length`` of them."""
    prompt = whole_letters(prompt)
    longest_of(tokenizer, [prompt], length, name, cut=True)
    return list(tokenizer(prompt, truncation=True, max_length=length).input_ids)


def longest_of(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int, name: str, cut: bool
) -> int:
    """Tokens of the longest of prompts; those beyond ``length`` are logged where they are cut, and
    too many refused (``ValueError``) where they are not."""
    ids = tokenizer(list(prompts), truncation=False, verbose=False).input_ids
    longest = max(map(len, ids))
    if not cut:
        refuse_long(longest)
    elif longest > length:
        log.warning("%s reads the first %d of %d tokens of this prompt", name, length, longest)
    return longest
