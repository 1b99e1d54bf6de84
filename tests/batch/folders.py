"""Folders of batches as a driver leaves them, without drawing anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

RECEIPT = {"version": 1, "device": "cpu", "did": [{"kind": "draw", "sampler": "euler"}]}


def job_id(values: dict[str, Any]) -> str:
    return sha256(json.dumps(values).encode()).hexdigest()[:24]


def append(folder: Path, *entries: dict[str, Any]) -> None:
    """More lines of a folder's manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "manifest.jsonl", "a", encoding="utf-8") as file:
        for entry in entries:
            file.write(json.dumps(entry) + "\n")


def draw(folder: Path, line: int, values: dict[str, Any], pictures: int = 1) -> str:
    """A job that is done: its pictures (plain colours) and its line; returns its id."""
    job = job_id(values)
    files = [f"pictures/{job[:2]}/{job}{f'_9_{i}' if i else ''}.png" for i in range(pictures)]
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        info = PngInfo()
        info.add_text("fluxfit", json.dumps(RECEIPT))
        Image.new("RGB", (48, 32), (line * 20 % 256, 90, 120)).save(folder / file, pnginfo=info)
    done = {"job": job, "line": line, "values": values, "files": files, "pixels": ["00"]}
    append(folder, done | {"seconds": line / 4, "worker": "local", "tries": 1})
    return job


def fail(folder: Path, line: int, values: dict[str, Any], error: str) -> str:
    job = job_id(values)
    append(folder, {"job": job, "line": line, "values": values, "error": error, "tries": 2})
    return job


def full_grid(folder: Path, seeds: Sequence[int], samplers: Sequence[str], text: str = "") -> None:
    """All seeds with all samplers, samplers changing first."""
    append(folder, {"manifest": 1, "fluxfit": "0.1.0"})
    line = 1
    for seed in seeds:
        for sampler in samplers:
            line += 1
            values = {"5.seed": seed, "5.sampler": sampler}
            draw(folder, line, values | ({"2.text": text} if text else {}))
