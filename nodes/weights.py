"""Weights, opened once for a file and a precision, and shared by all nodes that ask for the same.

A node holds what it opened last for as long as it stays in the graph: the host drops a node's
values before it runs it again with another widget, and a gigabyte would be read for a number. What
a node does not ask for any more is let go before it opens something else.

When a graph takes the place of another, the host drops the old nodes before it runs the new ones.
What those held waits until the new graph has run, where memory allows: it may ask for the same.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flux_core.checkpoint.reader import SHARD
from flux_core.quant import Precision, PrecisionPlan

from . import host

#: Beside an index of shards, or one of them, files that belong to it.
SHARDS = (".safetensors", ".sft")
#: Nodes that ask for weights.
ASKING = {
    "ControlNetUpscalerFP8",
    "FluxFitControlNet",
    "FluxFitIPAdapterLoader",
    "FluxFitLoraLoader",
    "FluxFitReduxLoader",
    "FluxFitTransformerLoader",
    "FluxFitVisionLoader",
    "FluxFitTextEncoderLoader",
    "FluxFitVAELoader",
    "FluxLoaderFP8",
}
#: The share of memory that has to be free for weights to wait for nodes that may ask for them.
FREE_SHARE = 0.5
#: Seconds between looks at whether a graph still runs.
LOOK = 0.5
_opened: weakref.WeakValueDictionary[Hashable, Any] = weakref.WeakValueDictionary()
#: What nodes that are gone held, by the prompt in whose time they went.
_waiting: dict[str, dict[Hashable, Any]] = {}


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
    elif path.suffix == ".json" or SHARD.fullmatch(path.name):
        files += sorted(p for p in path.parent.iterdir() if p.suffix in SHARDS)
    about = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return tuple(about)


def weights_key(kind: str, path: Path, precision: Precision | object) -> Hashable:
    """What a part of a file at a precision is known by."""
    if isinstance(precision, PrecisionPlan):
        precision = precision.to_json()
    return kind, stamp(path), precision


def wait(values: dict[Hashable, Any]) -> None:
    """Keep what a node held that is gone, for as long as the prompt runs that took its place."""
    prompt = host.running_prompt()
    if prompt is None or not values or not ASKING.intersection(prompt.nodes.values()):
        return
    if prompt.id not in _waiting:
        _waiting[prompt.id] = {}
        threading.Thread(target=end_waiting, args=(prompt.id,), daemon=True).start()
    _waiting[prompt.id] |= values


def end_waiting(prompt_id: str) -> None:
    """Let go what waits, once its prompt is over."""
    while (prompt := host.running_prompt()) is not None and prompt.id == prompt_id:
        time.sleep(LOOK)
    _waiting.pop(prompt_id, None)


class OpenedByNode:
    """What one node opened, from run to run."""

    def __init__(self) -> None:
        self.values: dict[Hashable, Any] = {}
        weakref.finalize(self, wait, self.values).atexit = False

    def get(self, wanted: Mapping[str, Wanted]) -> dict[str, Any]:
        """The values of all that is wanted, by name; opened in order where nobody has them."""
        keys = {one.key for one in wanted.values()}
        for key in [key for key in self.values if key not in keys]:
            del self.values[key]  # what is not wanted is gone before more is opened
        result = {}
        for name, one in wanted.items():
            value = self.values.get(one.key)
            if value is None:
                value = _opened.get(one.key)
            if value is None:
                if host.free_share() < FREE_SHARE:
                    _waiting.clear()
                value = _opened[one.key] = one.open()
            self.values[one.key] = result[name] = value
        return result

    def part(
        self,
        kind: str,
        name: str,
        folders: Sequence[str],
        precision: Precision | object,
        open: Callable[[Path], Any],
    ) -> Any:
        """A part of a file that a person chose, of a name in the host's folders; ``open`` makes it
        of the path."""
        path = host.model_path(name, *folders)
        return self.one(Wanted(weights_key(kind, path, precision), lambda: open(path)))

    def one(self, wanted: Wanted) -> Any:
        """The value of one thing that is wanted."""
        return self.get({"": wanted})[""]
