"""What a LoRA's file is: its ranks and alphas, the layers that it has, the models that it fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ..checkpoint.load import outline
from ..models.families import published_as, published_names
from ..models.transformer import FluxTransformer
from ..pocket import pocket_file
from .file import Lora, load_lora, rank_of
from .match import PART_NAMES, match_lora

POCKET = "the pocket model"


@dataclass(frozen=True)
class LoraFacts:
    """``layers`` of each part; ``ranks`` and ``alphas``, with how many layers have each; of layers
    without an alpha it is the rank. ``fits`` are the models that have all of its layers."""

    path: str
    layers: dict[str, int]
    ranks: dict[int, int]
    alphas: dict[float, int]
    fits: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As data."""
        ranks = [{"rank": rank, "layers": count} for rank, count in self.ranks.items()]
        alphas = [{"alpha": alpha, "layers": count} for alpha, count in self.alphas.items()]
        return {
            "layers": self.layers,
            "ranks": ranks,
            "alphas": alphas,
            "fits": list(self.fits),
        }

    def __str__(self) -> str:
        where = ", ".join(
            f"{count} layers of {PART_NAMES[part]}" for part, count in self.layers.items()
        )
        ranks = several("rank", {str(rank): count for rank, count in self.ranks.items()})
        alphas = several("alpha", {f"{alpha:g}": n for alpha, n in self.alphas.items()})
        models = ", ".join(self.fits) or "no model that FluxFit knows"
        return f"  a LoRA of {where}, {ranks}, {alphas}\n    fits {models}"


def several(name: str, counts: dict[str, int]) -> str:
    """``rank 16``, or where layers differ all of them, the most frequent first."""
    if len(counts) == 1:
        return f"{name} {next(iter(counts))}"
    shown = [f"{value} ({count})" for value, count in list(counts.items())[:5]]
    more = ", ..." if len(counts) > len(shown) else ""
    return f"{name} {', '.join(shown)}{more}" if counts else f"no {name}"


def lora_facts(path: str | Path) -> LoraFacts:
    """What a LoRA is; raises ``CheckpointError`` as ``load_lora``."""
    lora = load_lora(path)
    ranks: Counter[int] = Counter()
    alphas: Counter[float] = Counter()
    for kinds in lora.layers.values():
        rank = rank_of(kinds)
        if rank is None:
            continue
        ranks[rank] += 1
        alphas[float(kinds["alpha"]) if "alpha" in kinds else float(rank)] += 1
    layers = Counter(part for part, _ in lora.layers)
    return LoraFacts(
        str(path),
        dict(layers),
        dict(ranks.most_common()),
        dict(alphas.most_common()),
        tuple(fitting(lora)),
    )


def fitting(lora: Lora) -> Iterator[str]:
    """Names of models whose transformer has all of a LoRA's layers; none where it has none of a
    transformer."""
    if not any(part == "transformer" for part, _ in lora.layers):
        return
    if fits(lora, cast(FluxTransformer, outline(pocket_file("diffusion_models"), "transformer"))):
        yield POCKET
    models: dict[str, FluxTransformer] = {}
    for name in published_names():
        family, config = published_as(name)
        same = f"{family.transformer.__name__} {config}"
        if same not in models:
            with torch.device("meta"):
                models[same] = cast(FluxTransformer, family.transformer(config))
        models[same].family = family
        if fits(lora, models[same]):
            yield name


def fits(lora: Lora, transformer: FluxTransformer) -> bool:
    """Whether a transformer, which may be without numbers, has every layer of a LoRA that is for a
    transformer."""
    match = match_lora(lora, transformer)
    return bool(match.matched) and not match.unmatched
