"""The host's weight patches (stock LoRA nodes, hooks) as branches beside our weights.

The host keeps a list a weight: (strength, what, strength of the weight itself, part of the weight,
function on the result). It would add them to the weight; ours is quantized and stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from flux_core.lora import Lora
from flux_core.lora.apply import Numbered, numbered_deltas
from flux_core.lora.deltas import Delta, make_delta
from flux_core.lora.match import WIDENED_LAYER, linears_of, new_scale
from flux_core.models.layers import RMSNorm

#: A patch as the host has it.
Patch = tuple[float, Any, float, tuple[int, int, int] | None, Callable[[Tensor], Tensor] | None]
Patches = Mapping[str, Sequence[Patch]]
#: What the host's adapters hold, in their order, by the names that a file's tensors have.
ADAPTERS = {
    "lora": ("up", "down", "alpha", "mid", "magnitude", "shape"),
    "loha": (
        "hada_w1_a",
        "hada_w1_b",
        "alpha",
        "hada_w2_a",
        "hada_w2_b",
        "hada_t1",
        "hada_t2",
        "magnitude",
    ),
    "lokr": (
        "lokr_w1",
        "lokr_w2",
        "alpha",
        "lokr_w1_a",
        "lokr_w1_b",
        "lokr_w2_a",
        "lokr_w2_b",
        "lokr_t2",
        "magnitude",
    ),
}


@dataclass(frozen=True)
class Entry:
    """One patch of one weight: the layer's name, ``weight`` or ``bias`` (or a norm's), and it."""

    layer: str
    leaf: str
    patch: Patch

    @property
    def source(self) -> object:
        """What the branch is made of; another strength leaves it as it is."""
        return self.patch[1]

    @property
    def strength(self) -> float:
        return float(self.patch[0])


def entries_of(patches: Patches, prefix: str) -> list[Entry]:
    """All patches of weights whose names begin with a prefix, which they lose."""
    entries = []
    for key, of_key in patches.items():
        if key.startswith(prefix):
            layer, _, leaf = key.removeprefix(prefix).rpartition(".")
            entries += [Entry(layer, leaf, patch) for patch in of_key]
    return entries


def tensors_of(what: Any) -> dict[str, Tensor]:
    """The tensors of an adapter, or of a tuple ("diff", (tensor,)), by what a file calls them.

    Raises ``ValueError`` for kinds that have no form beside a weight.
    """
    if hasattr(what, "weights") and hasattr(what, "name"):
        names = ADAPTERS.get(what.name)
        if names is None:
            raise ValueError(
                f"is a {what.name} adapter, which turns the weight itself: it has no form beside "
                "quantized weights; use the stock loader for it"
            )
        values = dict(zip(names, what.weights, strict=False))
        if values.pop("mid", None) is not None:
            raise ValueError("is a LoRA of a convolution, which FLUX.1 has none of")
        values.pop("shape", None)  # the tensors tell it as well
        return {k: torch.as_tensor(v) for k, v in values.items() if v is not None}
    if isinstance(what, tuple) and len(what) in (1, 2):
        kind, values = ("diff", what) if len(what) == 1 else what
        if kind in ("diff", "set"):
            return {kind: values[0]}
        raise ValueError(f"is a patch of the kind {kind!r}, which needs the weight itself")
    raise ValueError(f"is {type(what).__name__}: models cannot be merged into quantized weights")


def is_swap(function: Callable[[Tensor], Tensor] | None) -> bool:
    """Whether a function swaps the halves of the rows, which is the only one that FLUX.1 needs."""
    if function is None:
        return False
    rows = torch.arange(4.0)[:, None]
    if not torch.equal(function(rows.clone()), torch.cat([rows[2:], rows[:2]])):
        raise ValueError("has a function on its result that FluxFit does not know")
    return True


def delta_of(entry: Entry, layer: nn.Module) -> Delta:
    """A patch of a linear layer as a delta; raises ``ValueError`` where it has no such form."""
    _, what, own, part, function = entry.patch
    if own != 1.0:
        raise ValueError("scales the weight itself: models cannot be merged into quantized weights")
    rows, width = int(layer.out_features), int(layer.in_features)  # type: ignore[arg-type]
    start, count = 0, rows
    if part is not None:
        if part[0] != 0:
            raise ValueError(f"is for a part of axis {part[0]}, expected rows")
        _, start, count = part
    kinds = tensors_of(what)
    if "set" in kinds:
        raise ValueError("overwrites the weight, which is quantized")
    if entry.leaf == "bias":
        if set(kinds) != {"diff"}:
            raise ValueError(f"is for a bias and holds {', '.join(kinds)}")
        kinds = {"bias": kinds["diff"]}
    wider = entry.layer == WIDENED_LAYER
    return make_delta(kinds, (start, count), width, is_swap(function), wider)


def numbered_entries(module: nn.Module, entries: Sequence[Entry], first: int = 0) -> Numbered:
    """What patches add to a model's layers, numbered in their order from ``first`` on.

    Raises ``ValueError`` naming the weight of the first that has no form beside it.
    """
    layers = linears_of(module)
    deltas: dict[str, list[tuple[int, Delta]]] = {}
    norms: dict[str, list[tuple[int, Tensor]]] = {}
    for number, entry in enumerate(entries, first):
        try:
            if entry.layer in layers:
                delta = delta_of(entry, layers[entry.layer])
                deltas.setdefault(entry.layer, []).append((number, delta))
                continue
            norm = module.get_submodule(entry.layer)
            if not isinstance(norm, RMSNorm):
                raise ValueError("is for a layer that takes no LoRA")
            kinds = tensors_of(entry.source)
            value = {"value" if kind == "set" else kind: t for kind, t in kinds.items()}
            norms.setdefault(entry.layer, []).append((number, new_scale(norm, value)))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"the patch of {entry.layer}.{entry.leaf} {error}") from error
    return deltas, norms


def numbered_together(
    module: nn.Module, loras: Sequence[Lora], entries: Sequence[Entry]
) -> Numbered:
    """What our LoRAs and the host's patches add to a model's layers, numbered in that order."""
    deltas, norms = numbered_deltas(module, loras)
    more_deltas, more_norms = numbered_entries(module, entries, len(loras))
    for name, of_layer in more_deltas.items():
        deltas.setdefault(name, []).extend(of_layer)
    for name, values in more_norms.items():
        norms.setdefault(name, []).extend(values)
    return deltas, norms
