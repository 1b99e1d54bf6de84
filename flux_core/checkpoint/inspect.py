"""What a checkpoint holds, in words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import one_line
from ..files import reading, reason
from ..models.config import ControlNetConfig, Shapes, VAEConfig
from ..models.families import recognize
from ..models.keymaps import native_shapes
from ..models.language import LanguageConfig
from .detect import Part, describe, find_parts, refuse_packed
from .reader import open_source
from .source import Source, total_bytes
from .weights import Weights


@dataclass(frozen=True)
class PartFacts:
    """A part's parameters by dtype, scales beside them, bytes, and its model's family and sizes."""

    numbers: Counter[str]
    scales: int
    size: int
    family: str | None
    config: object | None

    def __str__(self) -> str:
        total = self.numbers.total()
        mix = ", ".join(f"{n / total:.0%} {dtype}" for dtype, n in self.numbers.most_common())
        scales = f", {self.scales} scales" if self.scales else ""
        whose = f"{self.family}: " if self.family else ""
        sizes = "" if self.config is None else f"\n    {whose}{self.config}"
        return f"{total / 1e6:.1f} M parameters ({mix}{scales}), {self.size / MIB:.1f} MiB{sizes}"


def named_config(layout: str, shapes: Shapes) -> tuple[str, object]:
    """A transformer's family, and its configuration."""
    family, config = recognize(layout, shapes)
    return family.name, config


CONFIGS: dict[str, Callable[[str, Shapes], tuple[str | None, object]]] = {
    "transformer": named_config,
    "controlnet": lambda _, shapes: (None, ControlNetConfig.from_shapes(shapes)),
    "vae": lambda _, shapes: (None, VAEConfig.from_shapes(shapes)),
    "language_model": lambda _, shapes: (None, LanguageConfig.from_shapes(shapes).sizes),
}
MIB = 2**20
#: What is done with what is no part of FLUX.1.
NO_PART = {"a LoRA": ": put it on a model with FluxFitLoraLoader, loras= or merge --lora"}


def describe_file(path: str | Path) -> str:
    """Parts, layout, precision, sizes; one line a part. Raises ``CheckpointError``."""
    source = open_source(path)
    with reading(path, "a checkpoint"):
        return described(source)


def file_facts(path: str | Path) -> dict[str, Any]:
    """The same as data: sizes in bytes, parts with their numbers; errors as ``describe_file``."""
    source = open_source(path)
    with reading(path, "a checkpoint"):
        parts = find_parts(source)
        return {
            "file": str(path),
            "tensors": len(source.entries),
            "bytes": total_bytes(source.entries.values()),
            "holds": one_line(describe(source, parts)),
            "parts": [facts_or_fault(source, part) for part in parts],
        }


def facts_or_fault(source: Source, part: Part) -> dict[str, Any]:
    """One part as data; of one that cannot be loaded, why."""
    about = {"kind": part.kind, "layout": part.layout, "prefix": part.prefix}
    try:
        facts = part_facts(source, part)
    except (KeyError, ValueError) as fault:
        return about | {"fault": one_line(reason(fault))}
    return about | {
        "parameters": sum(facts.numbers.values()),
        "dtypes": dict(facts.numbers),
        "scales": facts.scales,
        "bytes": facts.size,
        "family": facts.family,
        "config": None if facts.config is None else str(facts.config),
    }


def described(source: Source) -> str:
    """An open file in words."""
    size = total_bytes(source.entries.values())
    lines = [f"{source.path}: {len(source.entries)} tensors, {size / MIB:.1f} MiB"]
    parts = find_parts(source)
    lines += [describe_part(source, part) for part in parts]
    if not parts:
        what = describe(source, parts)
        lines.append(f"  {one_line(what)}{NO_PART.get(what, ', which FluxFit does not run')}")
    return "\n".join(lines)


def describe_part(source: Source, part: Part) -> str:
    """One part in words; of one that cannot be loaded, why."""
    try:
        return f"  {part}: {part_facts(source, part)}"
    except (KeyError, ValueError) as fault:
        return f"  {part}: cannot be loaded: {one_line(reason(fault))}"


def part_facts(source: Source, part: Part) -> PartFacts:
    """A part's parameters, dtypes and sizes, read as the loader reads them; raises ``ValueError``
    and ``KeyError`` where it would."""
    inner = source.under(part.prefix)
    refuse_packed(inner, part)
    weights = Weights(inner)
    numbers: Counter[str] = Counter()
    for name, shape in weights.shapes.items():
        numbers[inner.kind(name)] += math.prod(shape)
    size = total_bytes(inner.entries.values())
    family, config = None, None
    if part.kind in CONFIGS:
        native = native_shapes(part.key_map(weights.shapes), weights.shapes)
        family, config = CONFIGS[part.kind](part.layout, native)
    return PartFacts(numbers, len(weights.scales), size, family, config)
