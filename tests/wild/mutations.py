"""Damage, drawn from a seed: to trees of JSON, to texts, and to the bytes of a file."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

#: Values that readers do not expect, of every type that JSON has.
ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**30,
    -(10**18),
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "..",
    "../../etc/passwd",
    "/",
    "C:x",
    "a\nb",
    "\0",
    "\ud800",
    "x" * 3000,
    [],
    {},
    [[]],
    [1, 2, 3],
    {"a": 1},
    {"__dict__": 1},
    {"__tensor__": "nothing"},
)


def places(tree: Any) -> list[tuple]:
    """The paths of all values of a tree, from its root."""
    paths: list[tuple] = []
    waiting: list[tuple[tuple, Any]] = [((), tree)]
    while waiting:
        path, value = waiting.pop()
        paths.append(path)
        if isinstance(value, dict | list):
            children = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*path, key), child) for key, child in children]
    return paths


def damaged_tree(tree: Any, rng: random.Random) -> Any:
    """A tree with some values changed, gone, doubled, renamed, or nested without end."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        path = rng.choice(places(tree))
        if not path:
            if rng.random() < 0.2:
                return rng.choice(ODD)
            continue
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        key, what = path[-1], rng.randrange(6)
        if what <= 2:
            parent[key] = copy.deepcopy(rng.choice(ODD))
        elif what == 3:
            del parent[key]
        elif what == 4 and isinstance(parent, dict):
            parent[f"{key}{rng.choice(('x', '.0', ' ', chr(0)))}"] = parent.pop(key)
        elif what == 4:
            parent.insert(0, copy.deepcopy(parent[key]))
        else:
            nested: Any = []
            for _ in range(rng.choice((5, 100))):
                nested = [nested] if rng.random() < 0.5 else {"a": nested}
            parent[key] = nested
    return tree


def as_json(tree: Any) -> bytes:
    """A tree as bytes; what is no number is written as Python writes it."""
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def damaged_text(raw: bytes, rng: random.Random) -> bytes:
    """A text cut, mixed up, of another encoding, or nested without end."""
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: raw[: rng.randrange(len(raw) + 1)],
        lambda: b"\xef\xbb\xbf" + raw,
        lambda: raw.decode("utf-8", "replace").encode("utf-16"),
        lambda: raw.replace(b"\n", b"\r\n"),
        lambda: raw.replace(b":", b"", 1),
        lambda: raw.replace(b"=", b"==", 1),
        lambda: raw + b"\0" * rng.randrange(1, 50),
        lambda: (b"[" if rng.random() < 0.5 else b'{"a":') * 100_000,
        lambda: raw + raw,
        lambda: damaged_bytes(raw, rng),
        lambda: b"",
    )
    return rng.choice(changes)()


def damaged_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Bytes cut short, turned over, filled with others, or longer than they were."""
    data = bytearray(raw)
    what = rng.randrange(5)
    if what == 0:
        return bytes(data[: rng.randrange(len(data) + 1)])
    if what == 1:
        for _ in range(rng.choice((1, 4, 64))):
            if data:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == 2 and data:
        start = rng.randrange(len(data))
        data[start : start + 16] = rng.randbytes(16)
    elif what == 3:
        start = rng.randrange(min(len(data), 64) + 1)
        data[start : start + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**63, 2**64 - 1)))
    else:
        data += rng.randbytes(rng.randrange(1, 200))
    return bytes(data)


def damaged_safetensors(raw: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else, or whose bytes are damaged."""
    if rng.random() < 0.35:
        return damaged_bytes(raw, rng)
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    if rng.random() < 0.3:  # more names, overlapping places, huge shapes
        name = rng.choice(list(header))
        twin = copy.deepcopy(header[name])
        if isinstance(twin, dict) and "shape" in twin:
            twin["shape"] = rng.choice(([2**40, 0], [2**62, 4], [-4, -4], [1] * 400, [2.0]))
        for i in range(rng.choice((1, 300))):
            header[f"{name}.{i}"] = twin
    else:
        header = damaged_tree(header, rng)
    text = as_json(header)
    text += b" " * (-len(text) % 8)
    size = len(text) + rng.choice((0, 0, 0, 0, 1, -1, 2**40))
    return struct.pack("<Q", max(0, size)) + text + raw[8 + length :]
