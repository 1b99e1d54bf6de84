"""FLUX.2's language model on a CLIP wire: token numbers in, its context out, in one call of ours.

It has no layers to stop at, no embeddings in a prompt and no weights of words: as in the host,
brackets are letters to it. Axis letters: B rows of tokens, N tokens, D width of the context.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from flux_core.models.language_encoders import LanguageTextEncoders
from flux_core.sampling.prompts import t5_work

from ..wires import FluxTextEncoders
from .clip import HostClipModel

#: What rows of tokens are called among a prompt's.
ROWS = "language_model"


class HostLanguageModel(HostClipModel):
    """What the host's CLIP calls its ``cond_stage_model``."""

    def __init__(self, texts: FluxTextEncoders) -> None:
        nn.Module.__init__(self)
        self.__dict__["texts"] = texts
        self.patcher = lambda: None
        table = cast(LanguageTextEncoders, texts.module).language.embed_tokens
        self.dtypes = {table.weight.dtype}

    @property
    def models(self) -> list[Any]:
        """There are none of the host's around it."""
        return []

    def encode_token_weights(self, pairs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """The context (B, N, D) of rows of token numbers; there is no pooled vector."""
        encoders = cast(LanguageTextEncoders, self.texts.module)
        rows = [[int(token[0]) for token in row] for row in pairs[ROWS]]
        longest = max(encoders.length, *map(len, rows))

        def encoded(_: torch.device) -> Tensor:
            return torch.cat([encoders.encode_rows([row], longest).context.cpu() for row in rows])

        return self.hold(encoders.language, encoded, t5_work(encoders.language, longest)), None


class LanguageTokenizer:
    """Token numbers of a prompt in the model's template, each with the weight 1."""

    def __init__(self, encoders: LanguageTextEncoders) -> None:
        self.encoders = encoders

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **_: Any
    ) -> dict[str, Any]:
        """One row of tokens; with ``return_word_ids`` none of them is a word's."""
        rest = (1.0, 0) if return_word_ids else (1.0,)
        return {ROWS: [[(number, *rest) for number in self.encoders.token_ids(text)]]}

    def untokenize(self, pairs: Any) -> list[tuple[Any, str]]:
        """Tokens with what they stand for."""
        return [(pair, str(self.encoders.tokenizer.decode([pair[0]]))) for pair in pairs]

    def state_dict(self) -> dict[str, Any]:
        return {}
