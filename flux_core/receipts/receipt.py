"""A receipt: what drew a picture, with which files, how, and what it took.

    {"version": 1, "fluxfit": "0.1.0", "torch": "2.13.0", "device": "cpu, AMD ...",
     "files": {"name": {"sha256": ..., "bytes": ...}},
     "did": [{"node": "5", "kind": "draw", "seed": 1, "sigmas": [...], ...}, ...],
     "picture": {"node": "9", "index": 0, "of": 1}, "pixels": "sha256"}

It stands in a PNG's text ``fluxfit``, beside ``prompt``, the graph. What was asked for is the
graph's to say, or ``command``'s; the receipt says what came of it.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from ..bounds import brief
from ..files import files_of_model, parse_json
from ..record import READ, Note, ReadFrom
from ..version import read_version
from .hashes import content_hash

#: The key of a PNG's text.
KEY = "fluxfit"
VERSION = 1


@dataclass(frozen=True)
class Receipt:
    """What is known of a picture; fields that are empty are not written."""

    did: Sequence[Note] = ()
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fluxfit: str = field(default_factory=read_version)
    torch: str = field(default_factory=lambda: str(torch.__version__))
    device: str = ""
    picture: Mapping[str, Any] = field(default_factory=dict)
    pixels: str = ""
    job: Mapping[str, Any] = field(default_factory=dict)
    command: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_notes(cls, notes: Sequence[Note], **more: Any) -> Receipt:
        """From what a run noted; files are hashed now, and named without their folders."""
        files: dict[str, dict[str, Any]] = {}
        did = [as_json(entry, files) for entry in notes if entry["kind"] != READ]
        return cls(did, files, device=machine(drawn_on(notes)), **more)

    @classmethod
    def parse(cls, text: str) -> Receipt:
        """From a picture's text; raises ``ValueError`` where it is no receipt."""
        data = parse_json(text, lenient=True)
        if not isinstance(data, dict) or data.get("version") != VERSION:
            version = data.get("version") if isinstance(data, dict) else None
            raise ValueError(f"its receipt has version {version!r}, expected {VERSION}")
        known: dict[str, Any] = {n: data[n] for n in cls.__dataclass_fields__ if n in data}
        for name, value in known.items():
            if not isinstance(value, kinds_of(name)):
                raise ValueError(f"its receipt's {name} is {type(value).__name__}")
        for entry in (*known.get("did", ()), *known.get("files", {}).values()):
            if not isinstance(entry, dict):
                raise ValueError(f"its receipt has {brief(entry)}, expected an object")
        unsaid: dict[str, Any] = {"fluxfit": "", "torch": ""}
        return cls(**(unsaid | known))

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"version": VERSION} | {name: value for name, value in fields.items() if value}

    def of_picture(self, pixels: str, node: str, index: int, count: int) -> Receipt:
        """That of one picture, by the hash of its pixels and where it comes from."""
        picture = {"node": node, "index": index, "of": count}
        return replace(self, pixels=pixels, picture=picture)

    def __str__(self) -> str:
        return json.dumps(self.to_json())


def kinds_of(name: str) -> tuple[type, ...]:
    """What a field of a receipt may be."""
    if name in ("fluxfit", "torch", "device", "pixels"):
        return (str,)
    return (list, tuple) if name == "did" else (dict,)


def as_json(value: Any, files: dict[str, dict[str, Any]]) -> Any:
    """A noted value as JSON has it; files go into ``files`` by their names."""
    if isinstance(value, ReadFrom):
        name = add_file(value, files)
        return {"file": name} | ({"precision": value.precision} if value.precision else {})
    if isinstance(value, Mapping):
        return {str(key): as_json(item, files) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item, files) for item in value]
    return value


def add_file(read: ReadFrom, files: dict[str, dict[str, Any]]) -> str:
    """Enter a file; gives the name that stands for it, which no other content has."""
    path, entry = read.path, {}
    if read.unchanged:  # else nobody knows any more what was in it
        size = sum(file.stat().st_size for file in files_of_model(path))
        entry = {"sha256": content_hash(path), "bytes": size}
    name, number = path.name, 1
    while files.get(name, entry) != entry:
        number += 1
        name = f"{path.name} ({number})"
    files[name] = entry
    return name


def drawn_on(notes: Sequence[Note]) -> str:
    """The device that a run noted for its transformer, or for another part; empty for none."""
    ran = [entry for entry in notes if entry["kind"] == "ran" and "device" in entry]
    drew = [entry for entry in ran if str(entry.get("part")).startswith("transformer")]
    return next((str(entry["device"]) for entry in drew or ran), "")


@cache
def machine(device: str = "") -> str:
    """What drew: the card's name, or the processor's; of no ``device`` what the machine has."""
    if torch.cuda.is_available() and not device.startswith("cpu"):
        return torch.cuda.get_device_name(device or None)
    return f"cpu, {processor()}"


def processor() -> str:
    """The processor's name, where the system says it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
