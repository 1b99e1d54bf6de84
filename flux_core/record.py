"""What a run notes of itself while it draws, for those who listen: which files, how, what it took.

Whoever wants to know listens, for a block (``recording``) or from then on (``subscribe``); nobody
carries notes along. A note is a dict with its ``kind``; files stand in it as ``ReadFrom``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .files import files_of_model

Note = dict[str, Any]
#: Where a module keeps which file it was read from.
ATTRIBUTE = "read_from"
#: The kind of note that says that a file was read; what came of it, others say.
READ = "read"
_subscribers: list[Callable[[Note], None]] = []
_recorded: ContextVar[tuple[list[Note], ...]] = ContextVar("recorded", default=())


#: Sizes and times of a model's files.
Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ReadFrom:
    """The file of a model, or of a LoRA, and how its weights are stored in memory."""

    path: Path
    precision: str | None = None
    #: Sizes and times of its files when it was read, where they are known.
    stamp: Stamp | None = None

    @property
    def unchanged(self) -> bool:
        """Whether it lies there as it was read."""
        return self.path.exists() and self.stamp in (None, stamp_of(self.path))


def stamp_of(path: Path) -> Stamp | None:
    """Sizes and times of the files of a model; None where one is missing."""
    try:
        stats = [file.stat() for file in files_of_model(path)]
    except (OSError, ValueError):
        return None
    return tuple((about.st_size, about.st_mtime_ns) for about in stats)


def mark_read(module: object, path: str | Path, precision: str) -> None:
    """Remember which file a module was read from."""
    model = ReadFrom(Path(path), precision, stamp_of(Path(path)))
    setattr(module, ATTRIBUTE, model)
    note(READ, model=model)


def mark_precision(module: object, precision: str) -> None:
    """Remember that a module's weights are stored otherwise now."""
    read = read_from(module)
    if read is not None:
        setattr(module, ATTRIBUTE, replace(read, precision=precision))


def read_from(module: object) -> ReadFrom | None:
    """The file that a module was read from; None where it came from none."""
    return getattr(module, ATTRIBUTE, None)


def note(kind: str, **facts: Any) -> None:
    """Tell those who listen; what is not known (None) is left out."""
    recorders = _recorded.get()
    if not recorders and not _subscribers:
        return
    entry = {"kind": kind} | {name: fact for name, fact in facts.items() if fact is not None}
    for notes in recorders:
        notes.append(entry)
    for listener in _subscribers:
        listener(entry)


@contextmanager
def recording() -> Iterator[list[Note]]:
    """The notes of everything inside the block, in its thread."""
    notes: list[Note] = []
    token = _recorded.set((*_recorded.get(), notes))
    try:
        yield notes
    finally:
        _recorded.reset(token)


def subscribe(listener: Callable[[Note], None]) -> None:
    """Call a function for every note from now on, of any thread."""
    if listener not in _subscribers:
        _subscribers.append(listener)
