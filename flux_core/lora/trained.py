"""A LoRA that is being trained: two float32 parameters beside each of its layers.

    y = W x + b + (alpha / rank) up (down x)

The base is frozen, whatever its precision; the factors are cast to the dtype of x, in which the
layer computes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..quant.products import linear
from .branch import Layer, attach, detach
from .match import linears_of

#: Kinds of layers that a LoRA may be trained on, by their native names.
KINDS = {
    "attention": r"(double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.linear[12])",
    "mlp": r"double_blocks\.\d+\.(img|txt)_mlp\.[02]",
    "modulation": r"(double_blocks\.\d+\.(img|txt)_mod|single_blocks\.\d+\.modulation|"
    r"(double|single)_stream_modulation(_img|_txt)?)\.lin",
}


class TrainedBranch(nn.Module):
    """The factors of one layer; ``up`` begins at zero, so that training begins at the base."""

    #: What offloading makes of its tensors (``offload.blocks``).
    offload_role = "trained"

    def __init__(self, layer: Layer, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(layer.in_features)
        down = torch.rand(rank, layer.in_features, generator=generator)
        self.down = nn.Parameter((2 * down - 1) * bound)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))
        self.scale = alpha / rank

    def add(self, layer: Layer, x: Tensor, y: Tensor) -> Tensor:
        """Add the LoRA's part to y (..., out), which the layer made of x (..., in)."""
        inner = linear(x, self.down.to(x.dtype)) * self.scale
        return y + linear(inner, self.up.to(x.dtype))


def layers_for(module: nn.Module, targets: Sequence[str]) -> dict[str, Layer]:
    """The layers that targets mean: kinds (``KINDS``), or patterns of whole native names.

    Raises ``ValueError`` for a target that means no layer of this model.
    """
    layers = linears_of(module)
    chosen: set[str] = set()
    for target in targets:
        pattern = KINDS.get(target, target)
        try:
            fitting = [name for name in layers if re.fullmatch(pattern, name)]
        except re.error as error:
            raise ValueError(f"target {target!r} is no pattern: {error}") from error
        if not fitting:
            raise ValueError(
                f"target {target!r} means no layer of this model, expected {', '.join(KINDS)} or "
                "a pattern such as double_blocks\\.[0-9]+\\.img_attn\\..*"
            )
        chosen.update(fitting)
    return {name: layer for name, layer in layers.items() if name in chosen}


class TrainedLora(nn.Module):
    """All factors of a LoRA that is being trained on a model.

    ``on`` has them beside the model's layers for the length of a ``with``.
    """

    def __init__(
        self, module: nn.Module, targets: Sequence[str], rank: int, alpha: float, seed: int = 0
    ) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode(False):
            branches = {
                name: TrainedBranch(layer, rank, alpha, generator)
                for name, layer in layers_for(module, targets).items()
            }
        self.names = list(branches)
        #: the same branches, which ``ModuleList`` has for their parameters
        self.layer_branches = list(branches.values())
        self.branches = nn.ModuleList(self.layer_branches)

    @contextmanager
    def on(self, module: nn.Module) -> Iterator[None]:
        """The factors beside a model's layers, the model's own weights frozen."""
        layers = linears_of(module)
        required = [(p, p.requires_grad) for p in module.parameters()]
        try:
            module.requires_grad_(False)
            for name, branch in zip(self.names, self.layer_branches, strict=True):
                attach(layers[name], branch)
            yield
        finally:
            for name in self.names:
                detach(layers[name])
            for parameter, was in required:
                parameter.requires_grad_(was)

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Down (rank, in) and up (out, rank) of every layer, by its native name."""
        pairs = zip(self.names, self.layer_branches, strict=True)
        return {name: (branch.down.detach(), branch.up.detach()) for name, branch in pairs}
