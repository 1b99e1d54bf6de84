"""What a batch reads: tables with their columns and values, grids, and manifests."""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path

from fluxfit.batch.columns import ColumnError, Columns
from fluxfit.batch.grid import read_grid
from fluxfit.batch.jobs import JobMaker
from fluxfit.batch.manifest import Manifest
from fluxfit.batch.table import BrokenRow, TableError, open_table
from fluxfit.nodes.headless import from_api

from tests.batch.fake_batch import api_graph

from .mutations import as_json, damaged_text, damaged_tree

CSV = b'seed,3.prompt,cfg,sampler\n1,"a heart, red",2.5,euler\n2,"in ""two""\nlines",1,heun\n'
ROWS = [{"seed": 1, "3.prompt": "a heart"}, {"cfg": 2.5, "sampler": "heun", "4.prompt": None}]
JOB = {"job": 24 * "a", "line": 2, "values": {"seed": 1}, "files": ["a.png"], "pixels": ["0"]}


def write_table(folder: Path, rng: random.Random) -> None:
    if rng.random() < 0.5:
        (folder / "t.csv").write_bytes(damaged_text(CSV, rng))
    else:
        lines = [as_json(damaged_tree(row, rng) if rng.random() < 0.7 else row) for row in ROWS]
        (folder / "t.jsonl").write_bytes(b"\n".join(lines))


def read_table(folder: Path) -> object:
    """Jobs of all rows that are whole; a row that is not is a text."""
    (path,) = folder.iterdir()
    graph = from_api(api_graph())
    maker = JobMaker(graph, Columns(graph, {}))
    jobs: list[object] = []
    for row in open_table(path).rows():
        if isinstance(row, BrokenRow):
            jobs.append(row.problem)
            continue
        try:
            jobs.append(maker.job(row.line, row.cells, str(path)))
        except (ColumnError, TableError):
            raise
        except ValueError as fault:
            jobs.append(str(fault))
    assert not any("\n" in job for job in jobs if isinstance(job, str)), jobs
    return jobs


def write_lines(folder: Path, rng: random.Random) -> None:
    (folder / "lines.txt").write_bytes(damaged_text(b"a heart, red\n\na circle\n", rng))


def read_lines(folder: Path) -> object:
    return read_grid([f"prompt=@{folder / 'lines.txt'}"])


def write_manifest(folder: Path, rng: random.Random) -> None:
    lines = [{"manifest": 1, "fluxfit": "0.1.0"}, JOB, JOB | {"job": 24 * "b"}]
    if rng.random() < 0.5:
        lines = [damaged_tree(line, rng) if rng.random() < 0.3 else line for line in lines]
        raw = b"".join(as_json(line) + b"\n" for line in lines)
    else:
        raw = damaged_text(b"".join(json.dumps(line).encode() + b"\n" for line in lines), rng)
    (folder / "manifest.jsonl").write_bytes(raw)


def read_manifest(folder: Path) -> object:
    with closing(Manifest(folder)) as manifest:
        return list(manifest.entries())
