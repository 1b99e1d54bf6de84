"""How strong a LoRA's layers are meant to be, where no ``.alpha`` beside them says so.

    header   lora_adapter_metadata: {"transformer.r": 4, "transformer.lora_alpha": 16, ...}
             (diffusers, SimpleTuner), or a number under <layer>.alpha or lora_alpha
    config   adapter_config.json beside the file: {"r": 4, "lora_alpha": 16, ...} (PEFT)

What is nearer to the tensors counts: ``.alpha``, header, config, and else the rank, which is no
scaling at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint.reader import files_in
from ..errors import CheckpointError
from ..files import parse_json, read_json, reading

HEADER_KEY = "lora_adapter_metadata"
CONFIG_NAME = "adapter_config.json"
#: What components are called in a header, and the part that each is.
COMPONENTS = {
    "transformer": "transformer",
    "unet": "transformer",
    "text_encoder": "clip_l",
    "text_encoder_2": "t5",
}
#: What PEFT's configurations call adapters that ``deltas`` computes.
PEFT_TYPES = ("LORA", "LOHA", "LOKR")
#: A pattern that is no plain name, and what is matched against it: a stranger's expression that
#: repeats more things, or a repeated one, could be tried for hours.
PLAIN = re.compile(r"[\w.-]*")
MOST_PATTERNS, MOST_REPEATS, LONGEST_NAME = 100, 3, 200
REPEAT = re.compile(r"(?<![\\(])[*+{?]")
MOST_RANK = 1_000_000


@dataclass(frozen=True)
class ByLayer:
    """Numbers of some layers, each with its place in the configuration: by a name, or the end of
    one, and by patterns."""

    names: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    patterns: tuple[tuple[int, re.Pattern[str], float], ...] = ()

    def of(self, name: str) -> float | None:
        """The number of a layer, which is the first that fits, as in PEFT; None where none does."""
        parts = name[-LONGEST_NAME:].split(".")
        ends = (".".join(parts[first:]) for first in range(len(parts)))
        fitting = [self.names[end] for end in ends if end in self.names]
        if len(name) <= LONGEST_NAME:
            fitting += [(place, value) for place, p, value in self.patterns if p.fullmatch(name)]
        return min(fitting)[1] if fitting else None


@dataclass(frozen=True)
class PeftSettings:
    """What a PEFT configuration says of one part's layers."""

    alpha: float | None = None
    rank: float | None = None
    alphas: ByLayer = field(default_factory=ByLayer)
    ranks: ByLayer = field(default_factory=ByLayer)
    root: bool = False  # alpha is divided by the root of the rank (use_rslora)

    def alpha_of(self, name: str, rank: float) -> float | None:
        """The alpha of a layer, as one that is divided by the rank; None where none is said."""
        own = self.alphas.of(name)
        alpha = self.alpha if own is None else own
        if alpha is None:
            return None
        return alpha * math.sqrt(rank) if self.root else alpha

    def rank_of(self, name: str) -> float | None:
        """The rank of a layer whose tensors do not show it; None where none is said."""
        own = self.ranks.of(name)
        return self.rank if own is None else own


def compiled(pattern: str, where: str) -> re.Pattern[str]:
    """A pattern that ends a layer's name; raises ``CheckpointError`` for one that is no regular
    expression, or could take for ever."""
    repeats = len(REPEAT.findall(pattern))
    if repeats > MOST_REPEATS or len(pattern) > LONGEST_NAME or re.search(r"\)[*+{]", pattern):
        raise CheckpointError(
            f"{where} {pattern[:40]!r} could take for ever, expected a name, or an expression of "
            f"{LONGEST_NAME} characters with {MOST_REPEATS} repetitions at most, none of a group"
        )
    try:
        return re.compile(rf"(.*\.)?(?:{pattern})")
    except (re.error, OverflowError) as error:
        raise CheckpointError(f"{where} {pattern!r} is no regular expression: {error}") from error


def peft_settings(raw: Mapping[str, Any], where: str) -> PeftSettings:
    """Settings of one part; raises ``CheckpointError`` for what are no numbers."""
    kind = raw.get("peft_type") or "LORA"
    if str(kind).rpartition(".")[2] not in PEFT_TYPES:
        raise CheckpointError(
            f"{where}: peft_type is {kind!r}, expected one of {', '.join(PEFT_TYPES)}"
        )
    alpha, r = raw.get("lora_alpha", raw.get("alpha")), raw.get("r")
    ranks = by_layer(raw.get("rank_pattern") or {}, f"{where}: rank_pattern")
    for name, (_, value) in ranks.names.items():
        checked_rank(value, f"{where}: rank_pattern of {name!r}")
    return PeftSettings(
        None if alpha is None else number(alpha, f"{where}: lora_alpha"),
        None if r is None else checked_rank(r, f"{where}: r"),
        by_layer(raw.get("alpha_pattern") or {}, f"{where}: alpha_pattern"),
        ranks,
        bool(raw.get("use_rslora", False)),
    )


def by_layer(raw: object, where: str) -> ByLayer:
    """Numbers by names and patterns; raises ``CheckpointError`` for what is none."""
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{where} is {raw!r}, expected names and numbers")
    names = {
        str(key): (place, number(value, f"{where} of {key!r}"))
        for place, (key, value) in enumerate(raw.items())
    }
    special = [name for name in names if not PLAIN.fullmatch(name)]
    if len(special) > MOST_PATTERNS:
        raise CheckpointError(
            f"{where} has {len(special)} expressions, expected {MOST_PATTERNS} at most beside "
            "plain names"
        )
    patterns = [(names[name][0], compiled(name, where), names[name][1]) for name in special]
    return ByLayer(names, tuple(patterns))


def checked_rank(value: object, where: str) -> float:
    """A rank, from 1 on; raises ``CheckpointError``."""
    converted = number(value, where)
    if not 1 <= converted <= MOST_RANK:
        raise CheckpointError(f"{where} is {value!r}, expected 1 to {MOST_RANK}")
    return converted


def number(value: object, where: str) -> float:
    """A finite number, written as one or as text; raises ``CheckpointError``."""
    try:
        converted = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        converted = math.nan
    if isinstance(value, bool) or not math.isfinite(converted):
        raise CheckpointError(f"{where} is {value!r}, expected a number")
    return converted


def header_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """What a header says, by part."""
    if HEADER_KEY not in metadata:
        if metadata.get("lora_alpha", "").lower() in ("", "none", "null"):
            return {}
        every = peft_settings(
            {"lora_alpha": metadata["lora_alpha"], "use_rslora": is_true(metadata)}, f"{path}"
        )
        return dict.fromkeys(COMPONENTS.values(), every)
    with reading(path, f"a LoRA, for its {HEADER_KEY}"):
        raw = parse_json(metadata[HEADER_KEY])
        if not isinstance(raw, dict):
            raise CheckpointError(f"{path}: {HEADER_KEY} is {raw!r}, expected names and values")
    parts: dict[str, dict[str, Any]] = {}
    for key, value in raw.items():
        component, _, rest = key.partition(".")
        if component in COMPONENTS and rest:
            parts.setdefault(COMPONENTS[component], {})[rest] = value
        else:
            parts.setdefault("transformer", {}).setdefault(key, value)
    return {part: peft_settings(values, f"{path}: {HEADER_KEY}") for part, values in parts.items()}


def is_true(metadata: Mapping[str, str]) -> bool:
    return metadata.get("use_rslora", "").lower() in ("true", "1")


def config_settings(path: Path) -> PeftSettings | None:
    """What a configuration says that lies beside a file, if it is this file's.

    It is that of PEFT's own name for the file, and of the only one in its folder.
    """
    folder = path if path.is_dir() else path.parent
    config = folder / CONFIG_NAME
    if not config.is_file():
        return None
    if not path.name.startswith("adapter_model") and len(files_in(folder, "*.safetensors")) > 1:
        return None
    raw = read_json(config, "a PEFT configuration", CheckpointError)
    if not isinstance(raw, dict):
        raise CheckpointError(f"{config}: is {raw!r}, expected names and values")
    return peft_settings(raw, str(config))
