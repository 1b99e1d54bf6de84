"""What a checkpoint holds, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

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


def named_config(layout: str, shapes: Shapes) -> str:
    """A transformer's family, and its configuration."""
    family, config = recognize(layout, shapes)
    return f"{family.name}: {config}"


CONFIGS: dict[str, Callable[[str, Shapes], object]] = {
    "transformer": named_config,
    "controlnet": lambda _, shapes: ControlNetConfig.from_shapes(shapes),
    "vae": lambda _, shapes: VAEConfig.from_shapes(shapes),
    "language_model": lambda _, shapes: LanguageConfig.from_shapes(shapes).sizes,
}
MIB = 2**20
#: What is done with what is no part of FLUX.1.
NO_PART = {"a LoRA": ": put it on a model with FluxFitLoraLoader, loras= or merge --lora"}


def describe_file(path: str | Path) -> str:
    """Parts, layout, precision, sizes; one line a part. Raises ``CheckpointError``."""
    source = open_source(path)
    with reading(path, "a checkpoint"):
        return described(source)


def described(source: Source) -> str:
    """The same of an open file."""
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
        return whole_part(source, part)
    except (KeyError, ValueError) as fault:
        return f"  {part}: cannot be loaded: {one_line(reason(fault))}"


def whole_part(source: Source, part: Part) -> str:
    """A part's parameters, dtypes and sizes, read as the loader reads them."""
    inner = source.under(part.prefix)
    refuse_packed(inner, part)
    entries = inner.entries
    weights = Weights(inner)
    numbers: Counter[str] = Counter()
    for name, shape in weights.shapes.items():
        dtype = inner.kind(name)
        count = 1
        for side in shape:
            count *= side
        numbers[dtype] += count
    total = numbers.total()
    mix = ", ".join(f"{count / total:.0%} {dtype}" for dtype, count in numbers.most_common())
    scales = f", {len(weights.scales)} scales" if weights.scales else ""
    return (
        f"  {part}: {total / 1e6:.1f} M parameters ({mix}{scales}), "
        f"{total_bytes(entries.values()) / MIB:.1f} MiB{sizes(part, weights)}"
    )


def sizes(part: Part, weights: Weights) -> str:
    """The model's sizes, read as the loader reads them."""
    if part.kind not in CONFIGS:
        return ""
    native = native_shapes(part.key_map(weights.shapes), weights.shapes)
    config = CONFIGS[part.kind](part.layout, native)
    return f"\n    {config}"
