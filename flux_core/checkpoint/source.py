"""Named tensors that are read on demand: what every kind of file is to the loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models.config import Shapes


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: its dtype, shape, and bytes from ``start`` on in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int


class Source(ABC):
    """Named tensors that are read on demand."""

    path: Path

    @property
    @abstractmethod
    def entries(self) -> dict[str, TensorInfo]:
        """Every tensor's place by name."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One tensor of any shape, on the CPU, in memory of its own.

        Raises ``KeyError`` for a foreign name.
        """

    def map(self, name: str) -> Tensor | None:
        """One tensor of any shape where it lies in its file; None where that cannot be.

        The system may drop it from memory and read it again. The file must not change meanwhile.
        """
        return None

    @property
    def metadata(self) -> dict[str, str]:
        return {}

    def kind(self, name: str) -> str:
        """How a tensor's numbers are written, in a word."""
        return str(self.entries[name].dtype).removeprefix("torch.")

    @property
    def shapes(self) -> Shapes:
        return {name: entry.shape for name, entry in self.entries.items()}

    def inner(self, name: str) -> str:
        """A full name in the file as this source has it."""
        return name

    def under(self, prefix: str) -> Source:
        """The tensors whose names start with ``prefix``, seen without it."""
        return Prefixed(self, prefix) if prefix else self


class Prefixed(Source):
    """A part of another source."""

    def __init__(self, source: Source, prefix: str) -> None:
        self.source, self.prefix, self.path = source, prefix, source.path
        self._entries = {
            name[len(prefix) :]: entry
            for name, entry in source.entries.items()
            if name.startswith(prefix)
        }

    @property
    def entries(self) -> dict[str, TensorInfo]:
        return self._entries

    @property
    def metadata(self) -> dict[str, str]:
        return self.source.metadata

    def kind(self, name: str) -> str:
        return self.source.kind(self.prefix + name)

    def inner(self, name: str) -> str:
        return self.source.inner(name).removeprefix(self.prefix)

    def read(self, name: str) -> Tensor:
        """One tensor of any shape, by its name without the prefix."""
        return self.source.read(self.prefix + name)

    def map(self, name: str) -> Tensor | None:
        """One tensor of any shape where it lies in its file, by its name without the prefix."""
        return self.source.map(self.prefix + name)


def total_bytes(entries: Iterable[TensorInfo]) -> int:
    return sum(entry.size for entry in entries)
