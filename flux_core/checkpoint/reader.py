"""Safetensors files read one tensor at a time, alone, sharded, or seen under a prefix.

The header is checked whole before any tensor is touched. A file is opened once, so that one that is
replaced under its name while it is read gives its old weights or an error, and never some of each.
A tensor is read into memory of its own, so that a load holds one tensor beside its result, and a
file that is deleted while its model is in use changes nothing; it is mapped only where memory would
not hold the model.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..files import UNFINISHED, is_hidden, parse_json, read_json, reading
from .gguf import GGUFFile
from .source import Source, TensorInfo

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
#: Bytes of a header; that of the largest public model takes a hundredth.
HEADER_LIMIT = 25_000_000
#: Files that one model is cut into; each stays open while it is read.
MOST_SHARDS = 500
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
#: Indices of shards; those of other frameworks' files lie beside some.
INDICES = ("*.safetensors.index.json", "*.safetensors.index.*.json")
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class SafetensorsFile(Source):
    """One file; raises ``CheckpointError`` where it is not a whole safetensors file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with reading(self.path, "a safetensors file"):
            if self.path.is_dir():
                raise CheckpointError(f"{path}: is a folder, expected a file")
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  (read until it is gone)
            self._entries, self._metadata = read_header(self.path, self._file)
        self._map: mmap.mmap | None = None

    @property
    def entries(self) -> dict[str, TensorInfo]:
        return self._entries

    @property
    def metadata(self) -> dict[str, str]:
        return self._metadata

    def read(self, name: str) -> Tensor:
        """One tensor of any shape, read into memory of its own."""
        entry = self._entries[name]
        with reading(self.path, f"a safetensors file, at {name!r}"):
            data = torch.empty(entry.size, dtype=torch.uint8)
            self._file.seek(entry.start)
            view, done = memoryview(data.numpy().data), 0
            while done < entry.size:
                count = self._file.readinto(view[done:])
                if not count:
                    raise CheckpointError(f"{self.path}: ends inside tensor {name!r}")
                done += count
        return data.view(entry.dtype).reshape(entry.shape)

    def map(self, name: str) -> Tensor | None:
        """One tensor of any shape in the mapped file; None where it is empty or not aligned."""
        entry = self._entries[name]
        if entry.start % entry.dtype.itemsize or not entry.size:
            return None
        if self._map is None:  # private: nothing that is written reaches the file
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        data = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.size, offset=entry.start)
        return data.view(entry.dtype).reshape(entry.shape)


class Shards(Source):
    """Several files that together hold one model, as an index lists them or their names say."""

    def __init__(
        self, path: Path, files: dict[str, SafetensorsFile], where: dict[str, str]
    ) -> None:
        self.path = path
        self._files, self._where = files, where
        for name, file in where.items():
            if name not in files[file].entries:
                raise CheckpointError(
                    f"{path}: the index puts {name!r} into {file}, which lacks it"
                )

    @property
    def entries(self) -> dict[str, TensorInfo]:
        return {name: self._files[file].entries[name] for name, file in self._where.items()}

    def read(self, name: str) -> Tensor:
        """One tensor of any shape, from the file that holds it."""
        return self._files[self._where[name]].read(name)

    def map(self, name: str) -> Tensor | None:
        """One tensor of any shape where it lies in its file; None where that cannot be."""
        return self._files[self._where[name]].map(name)


def read_header(path: Path, file: Any) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Entries and metadata of an open safetensors file, every number checked against its size."""
    total = os.fstat(file.fileno()).st_size
    head = file.read(9)
    (length,) = struct.unpack("<Q", head[:8]) if len(head) >= 8 else (total,)
    if head[8:] != b"{" or not 0 < length <= min(HEADER_LIMIT, total - 8):
        refuse_other_formats(path, head)
        if len(head) < 8:
            raise CheckpointError(f"{path}: is {total} bytes, too short for a safetensors file")
        raise CheckpointError(
            f"{path}: its header claims {length} bytes, but the file holds {total - 8} after "
            "the length: it is truncated or no safetensors file"
        )
    raw = head[8:] + file.read(length - 1)
    with reading(path, "a safetensors file, for its header"):
        header = parse_json(raw)
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict):
            raise CheckpointError(f"{path}: __metadata__ is {metadata!r}, expected names and texts")
        entries = {
            name: entry_of(path, name, item, 8 + length, total) for name, item in header.items()
        }
    refuse_overlaps(path, entries)
    return entries, {str(name): str(value) for name, value in metadata.items()}


def refuse_other_formats(path: Path, head: bytes) -> None:
    if head.startswith(PICKLES):
        raise CheckpointError(
            f"{path}: is a pickle, which can run code when it is opened; "
            "convert it to safetensors first"
        )
    if head.startswith(b"GGUF"):
        raise CheckpointError(f"{path}: is a GGUF file under the name of a safetensors file")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path}: is a web page that was saved in the place of the file")
    if head.startswith(b"version h"):
        raise CheckpointError(f"{path}: is a pointer of Git LFS: fetch the file itself")


def entry_of(path: Path, name: str, item: Any, data: int, total: int) -> TensorInfo:
    """One tensor's place, from what a header says of it."""
    if not isinstance(item, dict) or {"dtype", "shape", "data_offsets"} - set(item):
        raise CheckpointError(
            f"{path}: {name!r} is {item!r}, expected dtype, shape and data_offsets"
        )
    shape, offsets = item["shape"], item["data_offsets"]
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(is_count(n) for n in numbers):
            raise CheckpointError(f"{path}: {name!r} has {what} {numbers!r}, expected counts")
    if len(offsets) != 2:
        raise CheckpointError(f"{path}: {name!r} has data_offsets {offsets!r}, expected two")
    if not isinstance(item["dtype"], str) or item["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{path}: {name!r} has dtype {item['dtype']!r}, expected one of {', '.join(DTYPES)}"
        )
    dtype, (start, end) = DTYPES[item["dtype"]], offsets
    expected = dtype.itemsize * math.prod(shape)
    if end - start != expected:
        raise CheckpointError(
            f"{path}: {name!r} {tuple(shape)} {item['dtype']} takes {expected} bytes, "
            f"the header gives it {end - start}"
        )
    if data + end > total:
        raise CheckpointError(
            f"{path}: is truncated: {name!r} ends at byte {data + end}, the file at {total}"
        )
    return TensorInfo(dtype, tuple(shape), data + start, expected)


def is_count(value: object) -> bool:
    """Whether a value is a number of bytes or rows that memory could have."""
    return type(value) is int and 0 <= value < 2**48


def refuse_overlaps(path: Path, entries: dict[str, TensorInfo]) -> None:
    """Raise ``CheckpointError`` where two tensors share bytes: a small file would become large."""
    end, before = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.size and entry.start < end:
            raise CheckpointError(f"{path}: {before!r} and {name!r} share bytes")
        if entry.size:
            end, before = entry.start + entry.size, name


def open_source(path: str | Path) -> Source:
    """A file, a shard (which stands for all of them), an index, or a folder with one of these."""
    path = Path(path)
    if "\0" in str(path):
        raise CheckpointError(f"{str(path)!r}: is no name of a file")
    if not path.is_dir():
        if path.name.lower().endswith(UNFINISHED):
            raise CheckpointError(f"{path}: is a download that was not finished: fetch it again")
        if path.name.startswith("._"):
            raise CheckpointError(f"{path}: is what macOS keeps beside a file, not the file itself")
        if path.suffix == ".json":
            return open_index(path)
        shard = SHARD.fullmatch(path.name)
        return open_file(path) if shard is None else open_shards(path.parent, shard)
    for pattern in INDICES:
        indices = files_in(path, pattern)
        if indices:
            return open_index(indices[0])
    files = files_in(path, "*.safetensors", "*.sft", "*.gguf")
    shards = [shard for file in files if (shard := SHARD.fullmatch(file.name)) is not None]
    if shards and len({shard[1] for shard in shards}) == 1 and len(shards) == len(files):
        return open_shards(path, shards[0])
    if len(files) == 1:
        return open_file(files[0])
    listed = ", ".join(f.name for f in files[:5]) or "none"
    inner = sorted(f.parent.name for f in path.glob("*/config.json"))
    hint = f" (there are more in {', '.join(inner[:8])})" if inner and not files else ""
    raise CheckpointError(
        f"{path}: expected an index of shards or one .safetensors or .gguf file in this folder, "
        f"found {listed}{hint}"
    )


def open_shards(folder: Path, shard: re.Match[str]) -> Source:
    """All shards of a model, by one's name: as their index lists them, or, where it was not
    fetched, as each says of itself."""
    stem, dot, variant = shard[1].rpartition(".")
    names = [f"{shard[1]}.safetensors.index.json"]
    if dot:  # diffusers' name for one of several variants
        names.append(f"{stem}.safetensors.index.{variant}.json")
    for name in names:
        if (folder / name).is_file():
            return open_index(folder / name)
    count = int(shard[2])
    if not 0 < count <= MOST_SHARDS:
        raise CheckpointError(
            f"{folder / shard[0]}: is one of {count} shards, expected 1 to {MOST_SHARDS}"
        )
    if count == 1:
        return open_file(folder / shard[0])
    files = [f"{shard[1]}-{n:05d}-of-{shard[2]}.safetensors" for n in range(1, count + 1)]
    opened = open_all(folder / shard[0], files)
    where = {name: file for file, source in opened.items() for name in source.entries}
    if len(where) < sum(len(source.entries) for source in opened.values()):
        raise CheckpointError(f"{folder / shard[0]}: its shards hold some tensors twice")
    return Shards(folder / shard[0], opened, where)


def files_in(folder: Path, *patterns: str) -> list[Path]:
    """Files of some endings in a folder, but those that are hidden or not whole."""
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    return sorted(file for file in files if not is_hidden(file))


def open_file(path: Path) -> Source:
    """A safetensors or GGUF file, told by its first bytes."""
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(4) == b"GGUF":
                return GGUFFile(path)
    return SafetensorsFile(path)


def open_index(path: Path) -> Shards:
    index = read_json(path, "an index of shards", CheckpointError)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(where, dict) or not all(isinstance(f, str) for f in where.values()):
        raise CheckpointError(f"{path}: has no weight_map of names and files")
    names = sorted(set(where.values()))
    if len(names) > MOST_SHARDS:
        raise CheckpointError(f"{path}: names {len(names)} files, expected at most {MOST_SHARDS}")
    return Shards(path, open_all(path, names), where)


def open_all(path: Path, names: Sequence[str]) -> dict[str, SafetensorsFile]:
    """Shards that lie beside a file, by name; raises ``CheckpointError`` naming those that lack."""
    with reading(path, "shards of a model"):
        missing = [name for name in names if not is_plain_file(path.parent, name)]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(names)} shards are missing beside it: "
            f"{', '.join(missing[:5])}"
        )
    return {name: SafetensorsFile(path.parent / name) for name in names}


def is_plain_file(folder: Path, name: str) -> bool:
    """Whether ``name`` is a file directly inside the folder (an index may not point elsewhere)."""
    return Path(name).name == name and "\0" not in name and (folder / name).is_file()
