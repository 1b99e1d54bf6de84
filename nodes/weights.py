"""Weights, opened once for a file and a precision, and shared by all nodes that ask for the same.

A node holds what it opened last for as long as it stays in the graph: the host drops a node's
values before it runs it again with another widget, and a gigabyte would be read for a number. What
a node does not ask for any more is let go before it opens something else.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flux_core.quant import Precision, PrecisionPlan

#: Beside an index of shards, files that belong to it.
SHARDS = (".safetensors", ".sft")
_opened: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()


class Wanted(NamedTuple):
    """Something to open: what it is known by, and how."""

    key: Hashable
    open: Callable[[], Any]


def stamp(path: Path) -> Hashable:
    """What tells that a file, the shards of an index or a folder are as they were."""
    path = path.resolve()
    files = [path]
    if path.is_dir():
        files += sorted(path.iterdir())
    elif path.suffix == ".json":
        files += sorted(p for p in path.parent.iterdir() if p.suffix in SHARDS)
    about = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return tuple(about)


def weights_key(kind: str, path: Path, precision: Precision | object) -> Hashable:
    """What a part of a file at a precision is known by."""
    if isinstance(precision, PrecisionPlan):
        precision = precision.to_json()
    return kind, stamp(path), precision


class OpenedByNode:
    """What one node opened, from run to run."""

    def __init__(self) -> None:
        self.values: dict[Hashable, Any] = {}

    def get(self, wanted: Mapping[str, Wanted]) -> dict[str, Any]:
        """The values of all that is wanted, by name; opened in order where nobody has them."""
        keys = {one.key for one in wanted.values()}
        known = {key: self.values.get(key, _opened.get(key)) for key in keys}
        self.values = {key: value for key, value in known.items() if value is not None}
        del known  # what is not wanted is gone before more is opened
        result = {}
        for name, one in wanted.items():
            value = self.values.get(one.key)
            if value is None:
                value = _opened.get(one.key)  # the same may be wanted twice
            if value is None:
                value = _opened[one.key] = one.open()
            self.values[one.key] = result[name] = value
        return result

    def one(self, wanted: Wanted) -> Any:
        """The value of one thing that is wanted."""
        return self.get({"": wanted})[""]
