"""What a model is made of, as offloading sees it: blocks, modulations, and the small rest."""

from __future__ import annotations

from torch import nn

from ..models.transformer import FluxBody, ModulationLayer


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model in the order in which they run; empty where it has none."""
    if isinstance(module, FluxBody):
        return [*module.double_blocks, *module.single_blocks]
    for found in module.modules():  # T5
        layers = getattr(found, "block", None)
        if isinstance(layers, nn.ModuleList):
            return list(layers)
    return []


def parts_of(module: nn.Module) -> set[int]:
    return {id(part) for part in module.modules()}


def modulations_of(module: nn.Module) -> list[ModulationLayer]:
    return [m for m in module.modules() if isinstance(m, ModulationLayer)]


def modulation_parts(block: nn.Module) -> set[int]:
    """Modules inside a block that never travel: they are computed ahead of the run."""
    return {number for layer in modulations_of(block) for number in parts_of(layer)}
