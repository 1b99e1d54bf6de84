"""Safetensors files read one tensor at a time, alone, sharded, or seen under a prefix.

The header is checked whole before any tensor is touched. A tensor is read into memory of its own,
so that a load holds one tensor beside its result, and a file that is replaced or deleted while its
model is in use changes nothing; it is mapped only where memory would not hold the model.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError
from .gguf import GGUFFile
from .source import Source, TensorInfo

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
HEADER_LIMIT = 100_000_000  # bytes, as the safetensors library has it
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.safetensors")
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class SafetensorsFile(Source):
    """One file; raises ``CheckpointError`` where it is not a whole safetensors file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._entries, self._metadata = read_header(self.path)
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
        data = torch.empty(entry.size, dtype=torch.uint8)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(entry.start)
            view, done = memoryview(data.numpy().data), 0
            while done < entry.size:
                count = file.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise CheckpointError(f"{self.path}: ends inside tensor {name!r}")
                done += count
        return data.view(entry.dtype).reshape(entry.shape)

    def map(self, name: str) -> Tensor | None:
        """One tensor of any shape in the mapped file; None where it is empty or not aligned."""
        entry = self._entries[name]
        if entry.start % entry.dtype.itemsize or not entry.size:
            return None
        if self._map is None:
            with open(self.path, "rb") as file:  # private: nothing that is written reaches the file
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        data = torch.frombuffer(self._map, dtype=torch.uint8, count=entry.size, offset=entry.start)
        return data.view(entry.dtype).reshape(entry.shape)


class Shards(Source):
    """Several files that together hold one model, as an ``*.index.json`` lists them."""

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


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Entries and metadata of a safetensors file, every offset checked against the file's size."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    total = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        refuse_other_formats(path, head)
        if len(head) < 8:
            raise CheckpointError(f"{path}: is {total} bytes, too short for a safetensors file")
        (length,) = struct.unpack("<Q", head)
        if length > min(HEADER_LIMIT, total - 8):
            raise CheckpointError(
                f"{path}: its header claims {length} bytes, but the file holds {total - 8} after "
                "the length: it is truncated or no safetensors file"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
        metadata = header.pop("__metadata__", None) or {}
        entries = {
            name: entry_of(path, name, item, 8 + length, total) for name, item in header.items()
        }
    except (UnicodeDecodeError, json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: its safetensors header cannot be read ({error})") from error
    return entries, metadata


def refuse_other_formats(path: Path, head: bytes) -> None:
    if head.startswith(PICKLES):
        raise CheckpointError(
            f"{path}: is a pickle, which can run code when it is opened; "
            "convert it to safetensors first"
        )
    if head.startswith(b"GGUF"):
        raise CheckpointError(f"{path}: is a GGUF file under the name of a safetensors file")


def entry_of(path: Path, name: str, item: dict, data: int, total: int) -> TensorInfo:
    start, end = item["data_offsets"]
    if item["dtype"] not in DTYPES:
        raise CheckpointError(
            f"{path}: {name!r} has dtype {item['dtype']}, expected one of {', '.join(DTYPES)}"
        )
    dtype, shape = DTYPES[item["dtype"]], tuple(item["shape"])
    expected = dtype.itemsize * torch.Size(shape).numel()
    if end - start != expected:
        raise CheckpointError(
            f"{path}: {name!r} {shape} {item['dtype']} takes {expected} bytes, "
            f"the header gives it {end - start}"
        )
    if start < 0 or data + end > total:
        raise CheckpointError(
            f"{path}: is truncated: {name!r} ends at byte {data + end}, the file at {total}"
        )
    return TensorInfo(dtype, shape, data + start, expected)


def open_source(path: str | Path) -> Source:
    """A file, a shard (which stands for all of them), an index, or a folder with one of these."""
    path = Path(path)
    if not path.is_dir():
        shard = SHARD.fullmatch(path.name)
        index = path.with_name(f"{shard[1]}.safetensors.index.json") if shard else path
        if index.name.endswith(".index.json") and index.exists():
            return open_index(index)
        return open_file(path)
    indices = sorted(path.glob("*.index.json"))
    if indices:
        return open_index(indices[0])
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.gguf")])
    if len(files) != 1:
        listed = ", ".join(f.name for f in files) or "none"
        raise CheckpointError(
            f"{path}: expected an *.index.json or one .safetensors or .gguf file in this folder, "
            f"found {listed}"
        )
    return open_file(files[0])


def open_file(path: Path) -> Source:
    """A safetensors or GGUF file, told by its first bytes."""
    if path.is_file():
        with open(path, "rb") as file:
            if file.read(4) == b"GGUF":
                return GGUFFile(path)
    return SafetensorsFile(path)


def open_index(path: Path) -> Shards:
    try:
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(where.values()))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read as an index of shards ({error})") from error
    missing = [name for name in names if not is_plain_file(path.parent, name)]
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(names)} shards are missing beside it: "
            f"{', '.join(missing)}"
        )
    return Shards(path, {name: SafetensorsFile(path.parent / name) for name in names}, where)


def is_plain_file(folder: Path, name: str) -> bool:
    """Whether ``name`` is a file directly inside the folder (an index may not point elsewhere)."""
    return Path(name).name == name and (folder / name).is_file()
