"""Sizes that pictures are brought to, and batches of one size in an order that a seed fixes.

The order depends on seed and epoch alone, so that a position in the data is one number.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

from .seeds import combined_seed


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


def buckets(side: int, step: int, max_aspect: float) -> list[Size]:
    """Sizes in multiples of ``step``, none larger in area than a square of ``side``, from
    the tallest to the widest that ``max_aspect`` allows."""
    sizes = set[Size]()
    for width in range(step, int(side * math.sqrt(max_aspect)) + step, step):
        height = side * side // width // step * step
        if height < step:
            continue
        for size in (Size(width, height), Size(height, width)):
            if max(size) <= max_aspect * min(size) and size.width * size.height <= side * side:
                sizes.add(size)
    return sorted(sizes, key=lambda size: size.width / size.height)


def bucket_for(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """The size nearest in shape, and of those the largest."""

    def off(size: Size) -> tuple[float, int]:
        wanted = math.log(width / height)
        return abs(math.log(size.width / size.height) - wanted), -size.width * size.height

    return min(sizes, key=off)


class BatchSampler:
    """Batches of item numbers, each of one kind, for as many epochs as are asked for.

    Args:
        kinds: of each item; a batch holds items of one kind.
        repeats: how often each item comes in an epoch.
    """

    def __init__(
        self, kinds: Sequence[Hashable], repeats: Sequence[int], batch_size: int, seed: int
    ) -> None:
        self.batch_size, self.seed = batch_size, seed
        self.groups: dict[Hashable, list[int]] = {}
        for number, (kind, count) in enumerate(zip(kinds, repeats, strict=True)):
            self.groups.setdefault(kind, []).extend([number] * count)
        #: Batches an epoch; the last one of a kind may be smaller.
        self.count = sum(math.ceil(len(group) / batch_size) for group in self.groups.values())
        self.last_epoch: tuple[int, list[list[int]]] | None = None

    def epoch(self, number: int) -> list[list[int]]:
        """One epoch's batches."""
        if self.last_epoch is None or self.last_epoch[0] != number:
            self.last_epoch = number, self._shuffled(number)
        return self.last_epoch[1]

    def _shuffled(self, epoch: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(combined_seed(self.seed, epoch))
        batches: list[list[int]] = []
        for group in self.groups.values():
            order = torch.randperm(len(group), generator=generator).tolist()
            batches += [
                [group[i] for i in order[start : start + self.batch_size]]
                for start in range(0, len(group), self.batch_size)
            ]
        order = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[i] for i in order]

    def at(self, position: int) -> list[int]:
        """The batch at a position, counted over all epochs."""
        epoch, index = divmod(position, self.count)
        return self.epoch(epoch)[index]
