"""CLIP-L and T5: a prompt to ``context`` (one vector a token) and ``pooled`` (one a prompt).

The models are ``transformers``' own; this module reads their sizes from shapes, builds them on meta
and calls them as FLUX.1 does: both padded to a fixed length, T5 without an attention mask, CLIP's
vector taken at its end token. Families that mask padding have T5 alone, whose words do not see it,
and one token of it behind them. Axis letters: B prompts, N tokens, D and P widths.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, T5Config

from ..quant import quantized_linears
from ..quant.products import use_fast_linears
from .config import Shapes, count_whole
from .family import Family
from .prompt import (
    Embeddings,
    TokenRow,
    clip_l_row,
    embedding_files,
    is_plain,
    pad_of,
    read_prompt,
    t5_row,
)
from .text_encoding import Encodings, TextEncoding, joined, recalled, remember
from .tokenizers import Tokenizers, cut_ids, token_ids

#: Width of one attention head in every CLIP text model and in T5 1.1.
HEAD_SIZE = 64
#: Prompts whose encodings are kept; one of 512 tokens takes 4 MB.
CACHED_PROMPTS = 64


def clip_l_config(shapes: Shapes) -> CLIPTextConfig:
    """Sizes of a CLIP text model from the shapes of its ``text_model.`` keys."""
    vocab, width = shapes["text_model.embeddings.token_embedding.weight"]
    return CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_hidden_layers=count_whole(shapes, "text_model.encoder.layers.", "mlp.fc1.weight"),
        num_attention_heads=max(1, width // HEAD_SIZE),
        max_position_embeddings=shapes["text_model.embeddings.position_embedding.weight"][0],
        hidden_act="quick_gelu",
        projection_dim=width,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
        pad_token_id=vocab - 1,
    )


def t5_config(shapes: Shapes) -> T5Config:
    """Sizes of a T5 1.1 encoder from its shapes."""
    vocab, width = shapes["shared.weight"]
    attention = "encoder.block.0.layer.0.SelfAttention"
    buckets, heads = shapes[f"{attention}.relative_attention_bias.weight"]
    return T5Config(
        vocab_size=vocab,
        d_model=width,
        d_kv=shapes[f"{attention}.q.weight"][0] // heads,
        d_ff=shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0],
        num_layers=count_whole(shapes, "encoder.block.", "layer.0.SelfAttention.q.weight"),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )


class ClipEncoder(nn.Module):
    """CLIP's text model under the key that every file has: ``text_model``."""

    part = "clip_l"

    def __init__(self, config: CLIPTextConfig) -> None:
        from transformers import CLIPTextModel  # seconds, for those who build one

        super().__init__()
        model = CLIPTextModel(config)
        self.text_model = getattr(model, "text_model", model)  # transformers 5 has no inner model
        use_fast_linears(self)
        self.length = config.max_position_embeddings
        self.vocabulary = config.vocab_size

    def forward(self, ids: Tensor) -> Tensor:
        """Token numbers (B, N) to the vector at the first end token, (B, P)."""
        return self.text_model(input_ids=ids).pooler_output

    @property
    def table(self) -> nn.Embedding:
        """Vectors by token numbers."""
        return self.text_model.embeddings.token_embedding


class T5Encoder(nn.Module):
    """T5's encoder with its embedding, ``shared``."""

    part = "t5"

    def __init__(self, config: T5Config) -> None:
        from transformers import T5EncoderModel

        from .t5_layer import T5Layer

        super().__init__()
        model = T5EncoderModel(config)
        self.shared, self.encoder = model.shared, model.encoder
        self.encoder.embed_tokens = self.shared  # one tensor, in files as well
        for layer in self.encoder.block:
            layer.__class__ = T5Layer
        use_fast_linears(self)
        self.vocabulary = config.vocab_size

    def offload_blocks(self) -> list[nn.Module]:
        """The layers in the order in which they run."""
        return list(self.encoder.block)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Token numbers (B, N) to context (B, N, D), padding attended to as FLUX.1 was trained, or
        with a ``mask`` (B, N), 0 where it is not."""
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    @property
    def table(self) -> nn.Embedding:
        """Vectors by token numbers."""
        return self.shared


class TextEncoders(nn.Module):
    """Both encoders with their tokenizers; ``encode`` is what a prompt goes through.

    Args:
        clip_l: None for families that read T5 alone.
        masks_padding: prompts are read as ``Family.masks_padding`` says; by default where there is
            no CLIP-L.
    """

    def __init__(
        self,
        clip_l: ClipEncoder | None,
        t5: T5Encoder,
        tokenizers: Tokenizers,
        masks_padding: bool | None = None,
    ) -> None:
        super().__init__()
        for name, encoder, tokenizer in (
            ("CLIP-L", clip_l, tokenizers.clip_l),
            ("T5", t5, tokenizers.t5),
        ):
            if encoder is None or tokenizer is None:
                continue
            count = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
            if count > encoder.vocabulary:
                raise ValueError(
                    f"the {name} tokenizer has {count} tokens, its encoder "
                    f"{encoder.vocabulary}: they do not belong together"
                )
        self.clip_l, self.t5, self.tokenizers = clip_l, t5, tokenizers
        self.masks_padding = clip_l is None if masks_padding is None else masks_padding
        self.encodings: Encodings = OrderedDict()
        #: Where embeddings that a prompt names are looked for.
        self.embedding_folders: tuple[Path, ...] = ()

    @property
    def modules_used(self) -> list[nn.Module]:
        """The encoders that there are."""
        return [self.t5] if self.clip_l is None else [self.clip_l, self.t5]

    def for_family(self, family: Family) -> TextEncoders:
        """The encoders as a family's prompts are read; those that it does not need are left out.

        Raises ``ValueError`` where one is missing.
        """
        if "t5" not in family.encoders:
            raise ValueError(f"{family.name} reads a language model's text, and T5 was opened")
        wants_clip = "clip_l" in family.encoders
        if wants_clip and self.clip_l is None:
            raise ValueError(f"{family.name} reads CLIP-L beside T5, and no CLIP-L was opened")
        if wants_clip == (self.clip_l is not None) and family.masks_padding == self.masks_padding:
            return self
        other = self.__dict__.get("other")  # not a part of this one, whose T5 it shares
        if other is None or other.masks_padding != family.masks_padding:
            clip_l = self.clip_l if wants_clip else None
            other = TextEncoders(clip_l, self.t5, self.tokenizers, family.masks_padding)
            self.__dict__["other"] = other
        other.embedding_folders = self.embedding_folders
        return other

    @property
    def length(self) -> int:
        """Tokens of context by default."""
        return self.tokenizers.t5_length

    @property
    def context_encoder(self) -> T5Encoder:
        """What takes most of the memory."""
        return self.t5

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str],
        *,
        clip_l_prompts: Sequence[str] | None = None,
        t5_length: int | None = None,
        literal: bool = False,
    ) -> TextEncoding:
        """Encode B prompts to context (B, N, D) and pooled (B, P); an empty one is as good as any.

        Args:
            prompts: what T5 reads, and CLIP too unless ``clip_l_prompts`` is given.
            t5_length: tokens of context, by default 512 or what the tokenizer is made for; more
                where a prompt is longer, and as many as are read where padding is masked. CLIP-L
                reads 77 tokens; what it does not is logged.
            literal: brackets and names of embeddings are letters, and T5's tokens are cut as well.
        """
        length = t5_length or self.tokenizers.t5_length
        others = clip_l_prompts or prompts
        if self.masks_padding or self.clip_l is None:
            pairs = zip(prompts, others, strict=True)
            return joined([self._encode_one(text, other, length, literal) for text, other in pairs])
        if not literal and not all(map(is_plain, (*prompts, *others))):
            rows = self._t5_rows(prompts, length)
            context = torch.cat([self._context(row) for row in rows])
            return TextEncoding(context, torch.cat([self._pooled(text) for text in others]))
        t5_ids = token_ids(self.tokenizers.t5, prompts, length, "T5", cut=literal)
        assert self.tokenizers.clip_l is not None
        clip_l_ids = token_ids(self.tokenizers.clip_l, others, self.clip_l.length, "CLIP-L")
        context = self.t5(t5_ids.to(next(self.t5.parameters()).device))
        pooled = self.clip_l(clip_l_ids.to(next(self.clip_l.parameters()).device))
        return TextEncoding(context, pooled)

    def _encode_one(self, prompt: str, other: str, length: int, literal: bool) -> TextEncoding:
        """A prompt's context (1, N, D), as long as the prompt where padding is masked, and pooled
        vector (1, P)."""
        (row,) = self._t5_rows([prompt], length, literal)
        context = self._context(row)
        pooled = context.new_zeros(1, 0) if self.clip_l is None else self._pooled(other)
        return TextEncoding(context, pooled)

    def _embeddings(self, key: str, encoder: ClipEncoder | T5Encoder) -> Embeddings:
        """Embeddings as one of the two encoders reads them."""
        encoders = (self.clip_l, self.t5)
        widths = [each.table.embedding_dim for each in encoders if each is not None]
        return Embeddings(self.embedding_folders, key, encoder.table.embedding_dim, widths)

    def _t5_rows(
        self, prompts: Sequence[str], length: int, literal: bool = False
    ) -> list[TokenRow]:
        """What T5 reads of prompts, padded to the same length, which is ``length`` at least; or
        where padding is masked, each with one token of it. ``literal`` as ``encode`` has it."""
        tokenizer, embeddings = self.tokenizers.t5, self._embeddings("t5xxl", self.t5)
        rows = []
        for prompt in prompts:
            row = TokenRow()
            if literal:
                row.add(cut_ids(tokenizer, prompt, length, "T5"))
            else:
                row = t5_row(tokenizer, read_prompt(prompt), embeddings)
            rows.append(row)
        longest = max(length, *(len(row.ids) for row in rows))
        for row in rows:
            missing = 1 if self.masks_padding else longest - len(row.ids)
            row.add([pad_of(tokenizer)] * missing)
        return rows

    def _context(self, row: TokenRow) -> Tensor:
        """T5's states (1, N, D); with weights in float32, moved away from an empty prompt's."""
        ids = [row.ids]
        pad = pad_of(self.tokenizers.t5)
        if row.weighted:
            end = int(self.tokenizers.t5.eos_token_id)  # type: ignore[arg-type]
            first = pad if self.masks_padding else end  # the host's, of either
            ids.append([first] + [pad] * (len(row.ids) - 1))
        device = next(self.t5.parameters()).device
        mask = None
        if self.masks_padding:
            mask = torch.ones(len(ids), len(row.ids), dtype=torch.long, device=device)
            mask[:, -1] = 0
        with standing_in(self.t5.table, row.vectors):
            states = self.t5(torch.tensor(ids, device=device), mask)
        if not row.weighted:
            return states
        words, nothing = states.float().split(1)
        weights = torch.tensor(row.weights, device=device)[:, None]
        return torch.where(weights == 1, words, torch.lerp(nothing, words, weights))

    def _pooled(self, prompt: str) -> Tensor:
        """CLIP-L's vector (1, P); it has no weights, as in the host."""
        assert self.clip_l is not None and self.tokenizers.clip_l is not None
        embeddings = self._embeddings("clip_l", self.clip_l)
        tokenizer, length = self.tokenizers.clip_l, self.clip_l.length
        row = clip_l_row(tokenizer, read_prompt(prompt), embeddings, length)
        ids = torch.tensor([row.ids], device=next(self.clip_l.parameters()).device)
        with standing_in(self.clip_l.table, row.vectors):
            return self.clip_l(ids)

    def context_length(self, prompts: Sequence[str], t5_length: int | None = None) -> int:
        """Tokens of context that have room for the longest of these prompts."""
        rows = self._t5_rows(prompts, t5_length or self.tokenizers.t5_length)
        return max(len(row.ids) for row in rows)

    def tokens_at_once(
        self, prompts: Sequence[str], t5_length: int | None = None, literal: bool = False
    ) -> int:
        """The most tokens that T5 reads at once for one of these prompts."""
        length = t5_length or self.tokenizers.t5_length
        if literal:
            return length
        rows = [row for prompt in prompts for row in self._t5_rows([prompt], length)]
        return max(len(row.ids) * (2 if row.weighted else 1) for row in rows)

    def cached(
        self,
        prompt: str,
        clip_l_prompt: str | None = None,
        t5_length: int | None = None,
        loras: Hashable = (),
        literal: bool = False,
    ) -> TextEncoding | None:
        """What a prompt was encoded to before, on the CPU; None where it was not.

        ``loras`` stands for whatever else there was with the encoders, such as LoRAs.
        """
        key = self._key(prompt, clip_l_prompt, t5_length, loras, literal)
        return recalled(self.encodings, key)

    def encode_cached(
        self,
        prompt: str,
        clip_l_prompt: str | None = None,
        t5_length: int | None = None,
        loras: Hashable = (),
        literal: bool = False,
    ) -> TextEncoding:
        """``encode`` of one prompt, kept for ``cached`` on the CPU, the last ones of them."""
        clip_l_prompts = None if clip_l_prompt is None else [clip_l_prompt]
        encoding = self.encode(
            [prompt], clip_l_prompts=clip_l_prompts, t5_length=t5_length, literal=literal
        )
        key = self._key(prompt, clip_l_prompt, t5_length, loras, literal)
        return remember(self.encodings, key, encoding, CACHED_PROMPTS)

    def _key(
        self,
        prompt: str,
        clip_l_prompt: str | None,
        t5_length: int | None,
        loras: Hashable,
        literal: bool,
    ) -> object:
        """A text, and how the encoders multiply; their weights are those of this object."""
        computes = frozenset(layer.compute for layer in quantized_linears(self))
        length = t5_length or self.tokenizers.t5_length
        length = 0 if self.masks_padding and not literal else length
        other = prompt if clip_l_prompt is None else clip_l_prompt
        files = () if literal else embedding_files((prompt, other), self.embedding_folders)
        return prompt, other, length, computes, loras, literal, files


@contextmanager
def standing_in(table: nn.Embedding, vectors: Mapping[int, Tensor]) -> Iterator[None]:
    """Vectors (D,) in the place of some tokens of the first row that a table is asked for."""

    def put(_: nn.Module, __: object, rows: Tensor) -> Tensor:
        rows = rows.clone()
        for place, vector in vectors.items():
            rows[0, place] = vector.to(rows)
        return rows

    handle = table.register_forward_hook(put) if vectors else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
