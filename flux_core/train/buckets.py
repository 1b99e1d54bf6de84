"""Sizes that pictures are brought to, and batches of one size in an order that a seed fixes.

The order depends on seed and epoch alone, so that a position in the data is one number.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


def buckets(side: int, step: int, max_aspect: float) -> list[Size]:
    """Sizes in multiples of ``step``, none larger in area than a square of ``side``, from
    the tallest to the widest that ``max_aspect`` allows."""
    found = set[Size]()
    for width in range(step, int(side * math.sqrt(max_aspect)) + step, step):
        height = side * side // width // step * step
        if height < step:
            continue
        for size in (Size(width, height), Size(height, width)):
            if max(size) <= max_aspect * min(size) and size.width * size.height <= side * side:
                found.add(size)
    return sorted(found, key=lambda size: size.width / size.height)


def bucket_for(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """The size nearest in shape, and of those the largest."""

    def off(size: Size) -> tuple[float, int]:
        wanted = math.log(width / height)
        return abs(math.log(size.width / size.height) - wanted), -size.width * size.height

    return min(sizes, key=off)


class Batches:
    """Batches of item numbers, each of one kind, for as many epochs as are asked for."""

    def __init__(
        self, kinds: Sequence[Hashable], repeats: Sequence[int], batch: int, seed: int
    ) -> None:
        self.batch, self.seed = batch, seed
        self.groups: dict[Hashable, list[int]] = {}
        for number, (kind, count) in enumerate(zip(kinds, repeats, strict=True)):
            self.groups.setdefault(kind, []).extend([number] * count)
        #: Batches an epoch; the last one of a kind may be smaller.
        self.count = sum(math.ceil(len(group) / batch) for group in self.groups.values())
        self.known: tuple[int, list[list[int]]] | None = None

    def epoch(self, number: int) -> list[list[int]]:
        """One epoch's batches."""
        if self.known is None or self.known[0] != number:
            generator = torch.Generator().manual_seed(mixed(self.seed, number))
            made: list[list[int]] = []
            for group in self.groups.values():
                order = torch.randperm(len(group), generator=generator).tolist()
                made += [
                    [group[i] for i in order[start : start + self.batch]]
                    for start in range(0, len(group), self.batch)
                ]
            order = torch.randperm(len(made), generator=generator).tolist()
            self.known = number, [made[i] for i in order]
        return self.known[1]

    def at(self, position: int) -> list[int]:
        """The batch at a position, counted over all epochs."""
        epoch, index = divmod(position, self.count)
        return self.epoch(epoch)[index]


def mixed(*numbers: int) -> int:
    """A seed of several numbers, such that neighbours have nothing in common."""
    found = 0x9E3779B97F4A7C15
    for number in numbers:
        found = (found ^ number) * 0xBF58476D1CE4E5B9 % 2**64
        found ^= found >> 31
    return found % 2**63
