"""A prompt to the context of FLUX.2: a language model with its tokenizer.

A prompt stands in a chat's template, word by word: brackets and names of embeddings are letters, as
the host has them for these models. What is shorter than 512 tokens is padded. Axis letters: B
prompts, N tokens, D width of the context.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import CheckpointError
from ..files import LARGEST_TOKENIZER, reading
from ..quant import quantized_linears
from .family import Family
from .language import LANGUAGE_LENGTH, MISTRAL, QWEN3, LanguageEncoder, LanguageKind
from .prompt import refuse_long, whole_letters
from .text_encoders import CACHED_PROMPTS
from .text_encoding import Encodings, TextEncoding, recalled, remember

log = logging.getLogger(__name__)

#: Files of a tokenizer's folder that say its tokens.
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json")


def open_language_tokenizer(folder: str | Path, kind: LanguageKind) -> PreTrainedTokenizerBase:
    """A language model's tokenizer: a folder with ``tokenizer.json``, or ``vocab.json`` and
    ``merges.txt``.

    Raises ``CheckpointError`` naming the folder where it is none, or another model's.
    """
    folder = Path(folder)
    fast, slow = folder / "tokenizer.json", folder / "vocab.json"
    if not fast.is_file() and not (slow.is_file() and (folder / "merges.txt").is_file()):
        raise CheckpointError(
            f"{folder}: expected tokenizer.json, or vocab.json and merges.txt, found neither"
        )
    with reading(folder, "a tokenizer"):
        if fast.is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(fast))
        else:
            from transformers import Qwen2Tokenizer

            tokenizer = Qwen2Tokenizer.from_pretrained(str(folder), local_files_only=True)
        check_marks(tokenizer, kind, folder)
    return tokenizer


def check_marks(tokenizer: PreTrainedTokenizerBase, kind: LanguageKind, path: str | Path) -> None:
    """Raise ``CheckpointError`` where a tokenizer is not that of a language model."""
    words = tokenizer.get_vocab()
    for mark in kind.marks:
        if mark not in words:
            raise CheckpointError(
                f"{path}: the tokenizer has no {mark!r}: it is not that of {kind.title}"
            )


class LanguageTextEncoders(nn.Module):
    """A language model with its tokenizer, in the place of CLIP-L and T5 (``TextEncoders``)."""

    masks_padding = False

    def __init__(self, language: LanguageEncoder, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        count = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
        kind = language.config.kind
        if count > language.vocabulary:
            raise ValueError(
                f"the {kind.title} tokenizer has {count} tokens, its encoder "
                f"{language.vocabulary}: they do not belong together"
            )
        self.language, self.tokenizer, self.kind = language, tokenizer, kind
        self.encodings: Encodings = OrderedDict()

    @property
    def modules_used(self) -> list[nn.Module]:
        """The encoders that there are."""
        return [self.language]

    def for_family(self, family: Family) -> LanguageTextEncoders:
        """These, where a family reads this language model; else raises ``ValueError``."""
        if self.kind.name not in family.encoders:
            wanted = " and ".join(family.encoders)
            raise ValueError(f"{family.name} reads {wanted}, and {self.kind.title} was opened")
        return self

    @property
    def context_encoder(self) -> LanguageEncoder:
        """What takes most of the memory."""
        return self.language

    @property
    def length(self) -> int:
        """Tokens of context by default."""
        return LANGUAGE_LENGTH

    def token_ids(self, prompt: str, cut: bool = False) -> list[int]:
        """Token numbers of a prompt in its template; raises ``ValueError`` for too many.

        ``cut``: no more than 512, which is logged.
        """
        text = self.kind.template.format(whole_letters(prompt))
        ids = list(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)
        if self.kind.start:
            ids.insert(0, self.tokenizer.get_vocab()[self.kind.start])
        if cut and len(ids) > self.length:
            log.warning("%s reads %d of %d tokens", self.kind.title, self.length, len(ids))
            ids = ids[: self.length]
        refuse_long(len(ids))
        return ids

    def context_length(self, prompts: Sequence[str], length: int | None = None) -> int:
        """Tokens of context that have room for the longest of these prompts."""
        return max(length or self.length, *(len(self.token_ids(prompt)) for prompt in prompts))

    def tokens_at_once(
        self, prompts: Sequence[str], length: int | None = None, literal: bool = False
    ) -> int:
        """The most tokens that are read at once for one of these prompts."""
        return length or self.length if literal else self.context_length(prompts, length)

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], *, length: int | None = None, literal: bool = False
    ) -> TextEncoding:
        """Encode B prompts to context (B, N, D), and to a pooled vector of no numbers, (B, 0).

        Args:
            length: tokens of context, 512 by default; more where a prompt is longer.
            literal: prompts are cut to 512 tokens, as training has it.
        """
        return self.encode_rows([self.token_ids(prompt, literal) for prompt in prompts], length)

    @torch.no_grad()
    def encode_rows(self, rows: Sequence[Sequence[int]], length: int | None = None) -> TextEncoding:
        """``encode`` of B rows of token numbers, templates and all."""
        longest = max(length or self.length, *map(len, rows))
        pad = self.tokenizer.get_vocab()[self.kind.pad]
        ids, there = [], []
        for row in rows:
            padding, words = [pad] * (longest - len(row)), [True] * len(row)
            gap = [False] * len(padding)
            ids.append([*padding, *row] if self.kind.pad_left else [*row, *padding])
            there.append([*gap, *words] if self.kind.pad_left else [*words, *gap])
        device = next(self.language.parameters()).device
        context = self.language(
            torch.tensor(ids, device=device), torch.tensor(there, device=device)
        )
        return TextEncoding(context, context.new_zeros(len(context), 0))

    def cached(
        self,
        prompt: str,
        clip_l_prompt: str | None = None,
        length: int | None = None,
        loras: Hashable = (),
        literal: bool = False,
    ) -> TextEncoding | None:
        """What a prompt was encoded to before, on the CPU; None where it was not."""
        key = self._key(prompt, length, loras, literal)
        return recalled(self.encodings, key)

    def encode_cached(
        self,
        prompt: str,
        clip_l_prompt: str | None = None,
        length: int | None = None,
        loras: Hashable = (),
        literal: bool = False,
    ) -> TextEncoding:
        """``encode`` of one prompt, kept for ``cached`` on the CPU, the last ones of them; there
        is no CLIP-L to have a prompt of its own."""
        encoding = self.encode([prompt], length=length, literal=literal)
        key = self._key(prompt, length, loras, literal)
        return remember(self.encodings, key, encoding, CACHED_PROMPTS)

    def _key(self, prompt: str, length: int | None, loras: Hashable, literal: bool) -> object:
        """A text, and how the layers multiply."""
        computes = frozenset(layer.compute for layer in quantized_linears(self))
        return prompt, length or self.length, computes, loras, literal


def find_language_tokenizer(path: str | Path) -> Path:
    """The tokenizer's folder, in the weights' folder or beside it as Hugging Face has them; those
    of CLIP and T5, which may be there as well, are passed by.

    Raises ``FileNotFoundError`` saying where it was looked for.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    places = [folder / "tokenizer", folder.parent / "tokenizer", folder]
    others = []
    for place in places:
        if any((place / name).is_file() for name in ("tokenizer.json", "merges.txt")):
            if is_for_language(place):
                return place
            others.append(place)
    looked = " or ".join(map(str, places))
    what = "".join(f"; that in {place} is of another text encoder" for place in others)
    raise FileNotFoundError(
        f"no tokenizer for {path}: expected one in {looked}; it is the folder 'tokenizer' of the "
        "FLUX.2 repository on Hugging Face" + what
    )


def is_for_language(folder: Path) -> bool:
    """Whether a folder's tokenizer has what stands around a prompt of a language model."""
    words = b""
    with reading(folder, "a tokenizer"):
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                with open(folder / name, "rb") as file:
                    words += file.read(LARGEST_TOKENIZER)
    return any(all(mark.encode() in words for mark in kind.marks) for kind in (QWEN3, MISTRAL))
