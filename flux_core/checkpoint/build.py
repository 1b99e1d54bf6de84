"""From a file to a module: built on meta, then filled tensor by tensor.

Each tensor is read, cast or encoded, moved, and put in its place before the next is read, so that a
load holds the result and one tensor more. A module is handed out whole or not at all.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import reading
from ..models.config import Shapes
from ..models.keymaps import Recipe, Recipes, native_shapes
from ..quant import (
    FORMATS,
    Precision,
    PrecisionPlan,
    QuantizedLinear,
    full_dtype,
    quantize,
    set_compute,
)
from ..quant.apply import linears, module_bytes
from ..quant.precision import as_plan, precision_name
from ..record import mark_read
from ..units import readable_bytes
from .detect import Part, find_part, refuse_packed
from .reader import open_source
from .spill import Spill
from .weights import Stored, Weights

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

#: What training counted, which nobody reads.
COUNTERS = re.compile(r".*\.num_batches_tracked")
#: The precision that leaves every layer as its file holds it.
AS_STORED = "as_stored"


@torch.inference_mode(False)  # a host's nodes run in it, and weights from there train nothing
def load_part(
    path: str | Path,
    kind: str,
    new_module: Callable[[str, Shapes], nn.Module],
    *,
    precision: Precision = "bf16",
    compute: str = "auto",
    device: torch.device | str = "cpu",
    ram_budget: int | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Load one part of FLUX.1 from any layout.

    Args:
        path: a safetensors file, a folder, or an index of shards.
        kind: ``transformer``, ``controlnet``, ``vae``, ``clip_l`` or ``t5``.
        new_module: makes the module from its layout and native shapes; called on the meta device.
        precision: how linear layers are stored; ``as_stored`` is as the file has them.
        compute: how quantized layers multiply.
        ram_budget: bytes of host memory; a part that takes more stays on disk, in its file where
            that has it as it is wanted, and is read when it is used.
        progress: called with tensors done and tensors in all.

    Raises:
        CheckpointError: the file is broken, of another kind, or lacks tensors; it is named.
    """
    outline = outline_part(path, kind, new_module, precision)
    module, weights = outline.module, outline.weights
    set_compute(module, compute)
    size = module_bytes(module)
    spill: Spill | None = None
    if ram_budget is not None and size > ram_budget:
        weights.mapped = True
        spill = Spill(Path(path))
        log.info("%s: %s of weights stay on disk", path, readable_bytes(size))
    dtype = full_dtype(outline.precision)
    fill(
        module, outline.recipes, weights, outline.part, dtype, torch.device(device), progress, spill
    )
    restore_positions(module, torch.device(device))
    name = AS_STORED if precision == AS_STORED else precision_name(precision)
    mark_read(module, path, name)
    return module.eval()


class Outline(NamedTuple):
    """A part without numbers, and where they are to come from; ``precision`` is that of what is
    not quantized."""

    module: nn.Module
    part: Part
    weights: Weights
    recipes: Recipes
    precision: str


def outline_part(
    path: str | Path,
    kind: str,
    new_module: Callable[[str, Shapes], nn.Module],
    precision: Precision = "bf16",
) -> Outline:
    """A part on the meta device, as ``load_part`` would fill it; reads the file's header alone.

    Arguments and errors as ``load_part`` has them.
    """
    # an unknown name is refused before the file is opened
    asked = None if precision == AS_STORED else as_plan(precision)
    source = open_source(path)
    with reading(path, f"a {kind}"):
        part = find_part(source, kind)
        inner = source.under(part.prefix)
        refuse_packed(inner, part)
        weights = Weights(inner)
        recipes = part.key_map(weights.shapes)
    with reading(path, f"{part}: it is incomplete or malformed"), torch.device("meta"):
        module = new_module(part.layout, native_shapes(recipes, weights.shapes))
    plan = stored_plan(module, recipes, weights) if asked is None else asked
    if {plan.precision, *plan.layers.values()} & set(FORMATS):
        quantize(module, plan)
    return Outline(module, part, weights, recipes, plan.precision)


def stored_plan(module: nn.Module, recipes: Recipes, weights: Weights) -> PrecisionPlan:
    """The precision of each linear layer as a file holds it; the commonest stands for all."""
    precisions = {
        full: weights.precision_of(recipes[f"{full}.weight"])
        for full, *_ in linears(module)
        if f"{full}.weight" in recipes
    }
    return PrecisionPlan.of_layers(precisions)


def restore_positions(module: nn.Module, device: torch.device) -> None:
    """Count out the position numbers of transformers' CLIP, which no file holds."""
    for owner in module.modules():
        for name, buffer in list(owner.named_buffers(recurse=False)):
            if buffer.device.type == "meta" and name == "position_ids":
                positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
                owner.register_buffer(name, positions, persistent=False)


def fill(
    module: nn.Module,
    recipes: Recipes,
    weights: Weights,
    part: Part,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None,
    spill: Spill | None = None,
) -> None:
    """Give every tensor of a meta module its value."""
    path = weights.source.path
    slots = list(slots_of(module))
    refuse_missing(path, part, [name for name, *_ in slots], recipes, weights.shapes)
    used: set[str] = set()
    for done, (name, shape, owner, attribute) in enumerate(slots):
        recipe = recipes[name]
        used.update(recipe.names)
        with reading(path, f"{part}, for {name!r}"):
            stored = weights.make(recipe)
        if stored.shape != shape and torch.Size(stored.shape).numel() != torch.Size(shape).numel():
            raise CheckpointError(f"{path}: {name!r} has shape {stored.shape}, expected {shape}")
        place(owner, attribute, stored, shape, dtype, device, spill)
        value = getattr(owner, attribute)  # of a quantized layer it has no one tensor
        if dtype == torch.float16 and isinstance(value, Tensor) and not value.isfinite().all():
            raise CheckpointError(
                f"{path}: {name!r} has values beyond what float16 holds, expected bf16 for it"
            )
        if progress is not None:
            progress(done + 1, len(slots))
    unread = getattr(module, "unread", COUNTERS)
    left = sorted(n for n in set(weights.shapes) - used if not unread.fullmatch(n))
    if left:
        shown = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        log.warning("%s: %d tensors of %s were not used: %s", path, len(left), part, shown)


def slots_of(module: nn.Module) -> Iterator[tuple[str, tuple[int, ...], nn.Module, str]]:
    """Everything to fill: its name in the native layout, its shape, its owner and attribute."""
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(owner, QuantizedLinear):
            yield f"{prefix}weight", (owner.out_features, owner.in_features), owner, "weight"
        for name, parameter in owner.named_parameters(recurse=False):
            yield f"{prefix}{name}", tuple(parameter.shape), owner, name


def refuse_missing(
    path: Path, part: Part, wanted: list[str], recipes: Recipes, shapes: Shapes
) -> None:
    missing = [
        name
        for name in wanted
        if any(member not in shapes for member in recipes.get(name, Recipe((name,))).names)
    ]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise CheckpointError(
            f"{path}: {part} lacks {len(missing)} of {len(wanted)} tensors: {shown}"
        )


def place(
    owner: nn.Module,
    attribute: str,
    stored: Stored,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    spill: Spill | None,
) -> None:
    """Put one value where it belongs, in the dtype that the module's precision gives it."""

    def kept(value: Tensor) -> Tensor:
        value = value.to(device)
        return value if spill is None or stored.has_in_file(value) else spill.keep(value)

    if isinstance(owner, QuantizedLinear) and attribute == "weight":
        tensors, owner.format = stored.quantized(owner.format)
        owner.set_tensors({name: kept(tensor) for name, tensor in tensors.items()})
        return
    value = kept(stored.full(dtype).reshape(shape))
    owner.register_parameter(attribute, nn.Parameter(value, requires_grad=False))
