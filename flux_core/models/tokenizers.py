"""The two tokenizers: folders of the Hugging Face layout, opened and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]  (T5Tokenizer in 5.x)
)

from ..bounds import check_number
from ..errors import CheckpointError
from ..files import read_json, reading

#: The longest T5 context that FLUX.1 was trained with (dev; schnell takes 256).
T5_LENGTH = 512
#: Tokens that a tokenizer may have beside its own; T5 has 100.
MOST_EXTRA = 10_000


@dataclass(frozen=True)
class Tokenizers:
    """The two tokenizers; ``t5_length`` is the context length that they are made for."""

    clip_l: PreTrainedTokenizerBase
    t5: PreTrainedTokenizerBase

    @property
    def t5_length(self) -> int:
        """Tokens of context by default."""
        return min(T5_LENGTH, int(self.t5.model_max_length))

    @classmethod
    def load(cls, clip_l: str | Path, t5: str | Path) -> Tokenizers:
        """Open two folders of the Hugging Face layout.

        Raises ``CheckpointError`` naming the folder where one is missing, or is none.
        """
        return cls(
            open_tokenizer(Path(clip_l), CLIPTokenizer, "vocab.json", ("bos", "eos", "pad")),
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
