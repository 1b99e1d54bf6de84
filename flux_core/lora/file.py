"""A LoRA's file: its tensors by part, layer and kind, and how strong they are meant to be."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..bounds import refuse_not_finite
from ..checkpoint.reader import open_source
from ..checkpoint.source import Source
from ..errors import CheckpointError
from ..record import Stamp, stamp_of
from .alphas import config_settings, header_settings, number
from .names import LONGEST_KEY, NOT_READ, LoraKey, split_key

_serials = itertools.count()
#: Tensors of a LoRA; one of every layer, with magnitudes and biases, has 5,000.
MOST_TENSORS = 50_000
#: A part of the pipeline, and the name of a layer in it.
LayerKey = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Lora:
    """A file's tensors by part, layer's name and kind; ``keys`` has the key of each layer's.

    ``unknown`` are keys that are not known to belong to any layer; ``alphas`` counts where the
    strengths of layers come from.
    """

    path: str
    layers: Mapping[LayerKey, Mapping[str, Tensor]]
    keys: Mapping[LayerKey, tuple[str, ...]]
    unknown: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    alphas: Mapping[str, int] = field(default_factory=dict)
    #: Size and time of its file when it was opened, where it is of one.
    stamp: Stamp | None = None
    #: Which of all LoRAs that were opened it is, for those who remember what was done with it.
    serial: int = field(default_factory=lambda: next(_serials))

    @property
    def on_text(self) -> bool:
        """Whether it has layers of a text encoder."""
        return any(part != "transformer" for part, _ in self.layers)


def load_lora(path: str | Path) -> Lora:
    """Read a LoRA of any family.

    Raises ``CheckpointError`` where the file is broken, holds numbers that are not finite, names a
    layer twice, or has nothing that looks like a LoRA.
    """
    stamp, source = stamp_of(Path(path)), open_source(path)
    if len(source.entries) > MOST_TENSORS:
        raise CheckpointError(
            f"{path}: has {len(source.entries)} tensors, expected a LoRA of at most {MOST_TENSORS}"
        )
    split, unknown = split_keys(source)
    layers: dict[LayerKey, dict[str, Tensor]] = {}
    keys: dict[LayerKey, list[str]] = {}
    for key, (part, name, what, _) in split.items():
        kinds = layers.setdefault((part, name), {})
        if what in kinds and not what.startswith(NOT_READ):
            twin = next(k for k in keys[part, name] if split[k].what == what)
            raise CheckpointError(
                f"{path}: {key!r} and {twin!r} are of one layer, expected one adapter in a file"
            )
        kinds[what] = source.read(key)
        if what != "alpha":
            refuse_not_finite(source.path, key, kinds[what])
        keys.setdefault((part, name), []).append(key)
    if not any(set(kinds) - {"value", "alpha", "shape"} for kinds in layers.values()):
        shown = ", ".join(list(source.entries)[:3]) or "no tensors at all"
        raise CheckpointError(
            f"{path}: expected a LoRA (keys that end with .lora_A.weight, .lora_down.weight, "
            f".hada_w1_a and the like), found {shown}"
        )
    alphas = add_alphas(source, layers)
    for (part, name), kinds in layers.items():
        if "alpha" in kinds:
            (key,) = [k for k in keys[part, name] if split[k].what == "alpha"] or ["alpha"]
            refuse_not_finite(source.path, key, kinds["alpha"])
    return Lora(
        str(path),
        layers,
        {k: tuple(v) for k, v in keys.items()},
        tuple(unknown),
        source.metadata,
        alphas,
        stamp,
    )


def split_keys(source: Source) -> tuple[dict[str, LoraKey], list[str]]:
    """Every key taken apart, and those that no layer is known to have.

    What stands under a known layer and is of no known kind is that layer's, which is refused.
    """
    split = {key: apart for key in source.entries if (apart := split_key(key)) is not None}
    stems = {apart.stem: apart for apart in split.values()}
    unknown = []
    for key in source.entries:
        if key in split:
            continue
        if len(key) > LONGEST_KEY:
            unknown.append(key)
            continue
        stem = key.rpartition(".")[0]
        while stem and stem not in stems:
            stem = stem.rpartition(".")[0]
        if not stem:
            unknown.append(key)
            continue
        owner = stems[stem]
        what = f"{NOT_READ}{key[len(stem) + 1 :]}"
        split[key] = LoraKey(owner.part, owner.name, what, stem)
    return split, unknown


def add_alphas(source: Source, layers: dict[LayerKey, dict[str, Tensor]]) -> dict[str, int]:
    """Give low-rank layers without an alpha the one that is said elsewhere; counts the sources."""
    header, config = header_settings(source.path, source.metadata), config_settings(source.path)
    numbers: dict[LayerKey, float] = {}
    for key, value in source.metadata.items():
        apart = split_key(key)
        if apart is not None and apart.what == "alpha" and (apart.part, apart.name) in layers:
            numbers[apart.part, apart.name] = number(value, f"{source.path}: {key!r}")
    sources: Counter[str] = Counter()
    for (part, name), kinds in layers.items():
        rank: float | None = rank_of(kinds)
        if rank is None and {"lokr_w1", "lokr_w2"} <= kinds.keys():
            # LyCORIS writes any alpha beside them and does not scale them; PEFT writes none
            peft = [p for p in (header.get(part), config) if p is not None and "alpha" not in kinds]
            kinds.pop("alpha", None)
            rank = next((r for settings in peft if (r := settings.rank_of(name))), None)
            if rank is not None:
                kinds["rank"] = torch.tensor(rank)
        if rank is None:
            continue
        if "alpha" in kinds:
            sources["beside the tensors"] += 1
            continue
        in_header = numbers.get((part, name))
        if in_header is None and part in header:
            in_header = header[part].alpha_of(name, rank)
        in_config = config.alpha_of(name, rank) if config is not None else None
        for value, where in ((in_header, "in the header"), (in_config, "in adapter_config.json")):
            if value is not None:
                kinds["alpha"] = torch.tensor(value)
                sources[where] += 1
                break
        else:
            sources["not given, so the rank"] += 1
    return dict(sources)


def rank_of(kinds: Mapping[str, Tensor]) -> int | None:
    """The rank of a layer's factors; None where it has none, or where they are flat."""
    for name in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"):
        if name in kinds:
            return int(kinds[name].shape[0]) if kinds[name].ndim > 1 else 1
    return None
