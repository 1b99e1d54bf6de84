"""Modulations of a whole run, computed before it.

    modulation = lin(silu(vec)),   vec = f(timestep, guidance, pooled text)

They depend on nothing else, and the layers that make them are 27 % of the weights: computed for all
steps at once they are 2 MB a step, and their weights need not be on the device in the run. Every
policy takes them from here, so that all give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .blocks import PrecomputedLayer, modulations_of
from .pack import copied_to

#: Sigma, and which of the prompts.
Key = tuple[float, str]
#: Steps that are computed at once; at 2 MB each a run of a thousand would not fit.
WINDOW = 64


class PrecomputedModulations:
    """All modulations of one model for known vectors; ``select`` says which are current."""

    def __init__(
        self,
        body: nn.Module,
        vecs: Mapping[Key, Tensor],
        prepare: Callable[[Sequence[Key], int], None] | None = None,
    ) -> None:
        """``vecs`` are (B, D) on the device, by whatever key ``select`` will be given; ``prepare``
        is called with the keys of those that are computed next, and how many rows a layer reads of
        each at once: B, or 1."""
        self.body, self.prepare = body, prepare
        self.numbers = {key: i for i, key in enumerate(vecs)}
        self.vecs = torch.stack(list(vecs.values()))  # (K, B, D)
        self.places: dict[int, tuple[int, int]] = {}
        self.window = range(0)
        self.rows = self.current = self.vecs[:0]
        self.compute(0)

    def compute(self, first: int) -> None:
        """All layers' modulations of the vectors from number ``first`` on."""
        some = self.vecs[first : first + WINDOW]
        self.window = range(first, first + len(some))
        keys = list(self.numbers)[first : first + len(some)]
        layers = cast(list[PrecomputedLayer], modulations_of(self.body))
        start = 0
        for layer in layers:
            self.places[id(layer)] = (start, start + layer.width)
            start += layer.width
        #: (window, B, all layers' modulations)
        self.rows = some.new_empty(*some.shape[:2], start)
        for layer in layers:
            first, last = self.places[id(layer)]
            here = cast(PrecomputedLayer, copied_to(cast(nn.Module, layer), some.device))
            self.rows[..., first:last] = self.raw(here, keys, some)
        if not self.current.numel():
            #: One step's, always at one place, so that a compiled block reads it without asking.
            self.current = torch.empty_like(self.rows[0])

    def raw(self, layer: PrecomputedLayer, keys: Sequence[Key], vecs: Tensor) -> Tensor:
        """What a layer makes of vectors (K, B, D), (K, B, width)."""
        prepare = self.prepare
        if prepare is not None and getattr(layer, "one_by_one", False):
            raws = []
            for key, vec in zip(keys, vecs, strict=True):
                prepare([key], 1)
                raws.append(layer.raw(vec))
            return torch.stack(raws)
        if prepare is not None:
            prepare(keys, vecs.shape[1])
        return layer.raw(vecs.flatten(0, 1)).unflatten(0, vecs.shape[:2])

    def select(self, key: Key) -> bool:
        """Make one vector's modulations current; False where it was not precomputed."""
        number = self.numbers.get(key)
        if number is None:
            return False
        if number not in self.window:
            self.compute(number)
        self.current.copy_(self.rows[number - self.window.start])
        return True

    def of(self, layer: PrecomputedLayer) -> Tensor:
        """A layer's modulations that are current now, (B, width)."""
        first, last = self.places[id(layer)]
        return self.current[:, first:last]
