"""What a prompt's call of the model reads of text at each sigma, where that changes over a run.

Regions count in the first share of the schedule, and NAG reads a negative text over a span. What
they need (texts behind each other, who may read whom) is built when a stretch of the schedule
begins and kept until the next one does.

Axis letters: B pictures, N text tokens, T all tokens, h and w latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..models.families import family_of
from ..models.transformer import FluxTransformer
from .attention_masks import added_up, attention_mask, open_to, padding_mask
from .conditioning import Conditioning
from .guidance import GuidanceOptions
from .latents import expand, text_ids
from .nag import NormalizedAttention, NormalizedAttentionGuidance
from .prepared import PreparedPrompt, checked, sigma_at, within
from .regional import TokenSpans, add_own_biases, covers, regional_bias, spans_of
from .regions import is_alone
from .sigmas import SigmaTable


@dataclass(frozen=True)
class Guiding:
    """A negative prompt that attention is guided away from, and how."""

    negative: Conditioning
    options: NormalizedAttentionGuidance

    @property
    def tokens(self) -> int:
        return self.negative.context.shape[1]


def guiding_of(options: GuidanceOptions, negative: Sequence[Conditioning] | None) -> Guiding | None:
    """What attention is guided away from; raises ``ValueError`` where that is not one prompt."""
    if options.nag is None:
        return None
    count = len(negative or ())
    if negative is None or count != 1 or not is_alone(negative):
        what = "one of a part of the picture" if count == 1 else f"{count} negative prompts"
        raise ValueError(
            f"NAG has {what}, expected one for the whole picture and "
            "all steps: give it a negative prompt"
        )
    if negative[0].regional is not None:
        raise ValueError("NAG's negative prompt has regions, expected one for the whole picture")
    return Guiding(negative[0], options.nag)


class Stretch(NamedTuple):
    """A part of the schedule in which the same is read: how much regions count, and whether NAG
    is on."""

    level: float
    guided: bool

    @property
    def plain(self) -> bool:
        return not self.level and not self.guided


def stretch_at(
    prompt: Conditioning, guiding: Guiding | None, table: SigmaTable, sigma: float
) -> Stretch:
    """What is read of a prompt at a sigma."""
    level, guided = 0.0, False
    if prompt.regional is not None:
        early = sigma > sigma_at(table, prompt.regional.options.share)
        level = 1.0 if early else prompt.regional.options.later
    if guiding is not None:
        guided = within(table, guiding.options.start, guiding.options.end, sigma)
    return Stretch(level, guided)


def keeps_images_apart(prompt: Conditioning, level: float) -> bool:
    """Whether not all image tokens read each other alike."""
    regional = prompt.regional
    return prompt.attention is not None or (
        regional is not None and level * (1 - regional.options.across) > 0
    )


class PromptReading:
    """The inputs of the transformer that change over a run, for one prompt."""

    def __init__(
        self,
        prompt: PreparedPrompt,
        transformer: FluxTransformer,
        table: SigmaTable,
        shape: Sequence[int],
        guiding: Guiding | None,
    ) -> None:
        """``shape`` is that of the latents, (B, C, h, w).

        Raises ``ValueError`` where text encoders do not belong to the transformer.
        """
        self.prompt, self.transformer, self.table = prompt, transformer, table
        self.guiding, self.entry = guiding, prompt.prompt
        self.geometry = family_of(transformer).tokens
        regional = self.entry.regional
        self.cover = None
        if regional is not None:
            self.cover = covers(regional, shape[-2], shape[-1], prompt.area, self.geometry)
            for region in regional.prompts:
                checked(region, transformer)
        if guiding is not None:
            checked(guiding.negative, transformer)
        self.stretch: Stretch | None = None
        self.inputs: dict[str, Any] = {}

    @property
    def without_masks(self) -> bool:
        """Whether it keeps no mask over all tokens."""
        return self.cover is None and self.entry.attention is None

    def at(self, sigma: float) -> dict[str, Any]:
        """Arguments of the transformer that differ from those of the prompt alone."""
        stretch = stretch_at(self.entry, self.guiding, self.table, sigma)
        if stretch != self.stretch:
            self.inputs = {}  # the last ones go before the next are built
            self.inputs = {} if stretch.plain else self.built(stretch)
            self.stretch = stretch
        return self.inputs

    def built(self, stretch: Stretch) -> dict[str, Any]:
        """The arguments of one stretch."""
        prompt, regional = self.prompt, self.entry.regional
        references = 0 if prompt.references is None else prompt.references.shape[1]
        size = (prompt.height, prompt.width)
        spans = spans_of(self.entry, *size, stretch.level, references, self.geometry)
        texts, bias = [prompt.context], prompt.mask
        if regional is not None and self.cover is not None and stretch.level:
            texts += [self.text(region) for region in regional.prompts]
            dtype, device = self.transformer.dtype, prompt.context.device
            bias = regional_bias(regional, self.cover, spans, stretch.level, dtype, device)
            entries = [self.entry, *regional.prompts]
            bias = add_own_biases(bias, entries, spans, *size, self.geometry)
            side_tokens = 0 if prompt.side is None else prompt.side.count
            others = spans.image + references + side_tokens
            bias = added_up([open_to(bias, side_tokens), self.padding(entries, others)])
        inputs: dict[str, Any] = {"attention_mask": bias}
        if stretch.guided and self.guiding is not None:
            texts.insert(0, self.text(self.guiding.negative))
            inputs = {"patches": self.guided(self.guiding, spans, bias, stretch.level)}
            inputs["attention_mask"] = None
        inputs["txt"] = torch.cat(texts, dim=1)
        inputs["txt_ids"] = self.positions(texts)
        return inputs

    def positions(self, texts: Sequence[Tensor]) -> Tensor:
        """Positions (N, axes) of texts (B, n, D) behind each other: each is counted by itself."""
        ids = [text_ids(text.shape[1], self.geometry) for text in texts]
        return torch.cat(ids).to(self.prompt.context.device)

    def padding(self, prompts: Sequence[Conditioning], others: int) -> Tensor | None:
        """Which tokens of texts behind each other, and of ``others`` behind them, are read,
        (1 or B, 1, T); None for all."""
        if all(prompt.text_mask is None for prompt in prompts):
            return None
        keeps = [
            torch.ones(1, prompt.context.shape[1], dtype=torch.bool)
            if prompt.text_mask is None
            else prompt.text_mask.bool().cpu()
            for prompt in prompts
        ]
        rows = max(map(len, keeps))
        keep = torch.cat([expand(keep, rows) for keep in keeps], dim=1)
        return padding_mask(keep, others, self.prompt.context.device)

    def text(self, prompt: Conditioning) -> Tensor:
        """Another prompt's context (B, N, D) on the device."""
        return expand(prompt.context.to(self.prompt.context.device), self.prompt.batch)

    def guided(
        self, guiding: Guiding, spans: TokenSpans, bias: Tensor | None, level: float
    ) -> NormalizedAttention:
        """Attention guided away from the negative text, for a mask (1 or B, T, T) of the rest."""
        device, dtype, first = self.prompt.context.device, self.transformer.dtype, guiding.tokens
        size, negative = (self.prompt.height, self.prompt.width), guiding.negative
        about = (spans.references, device, dtype, self.geometry)
        masks = [attention_mask(negative.attention, first, *size, *about)]
        masks.append(padding_mask(negative.text_mask, spans.image + spans.references, device))
        if bias is not None and keeps_images_apart(self.entry, level):
            images = bias[:, spans.text :, spans.text :]
            masks.append(F.pad(images, (first, 0, first, 0), value=images.dtype == torch.bool))
        numbers = torch.tensor(guiding.options.numbers, device=device)
        return NormalizedAttention(numbers, first, first + spans.text, bias, added_up(masks))
