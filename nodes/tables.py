"""The node that names a table: what the pictures of a batch differ in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_core.errors import ConfigError
from flux_core.files import folders_below
from flux_core.pocket import ASSETS

from . import host
from .widgets import choice, text
from .wires import BATCHES, FLUXFIT_TABLE

#: What stands in the list of tables where a grid alone is meant.
NO_TABLE = "(none)"
#: How names of tables end.
ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
#: Values of a grid that are shown, of each column.
SHOWN = 6


@dataclass(frozen=True)
class RowsOf:
    """Where rows come from: a table (None for a grid alone), every row of it with every combination
    of ``grid``; ``mapping`` gives inputs to names of columns."""

    path: Path | None
    grid: Mapping[str, Sequence[Any]]
    mapping: Mapping[str, str]


def table_roots() -> list[Path]:
    """Where tables lie: the input folder, and those that FluxFit ships."""
    return [host.input_folder(), ASSETS / "tables"]


def table_names() -> list[str]:
    """Tables that a person can choose from, without repeats."""
    matches = [
        (folder / name).relative_to(root).as_posix()
        for root in table_roots()
        for folder, files in folders_below(root)
        for name in files
        if name.lower().endswith(ENDINGS)
    ]
    return list(dict.fromkeys(matches))


def table_path(name: str) -> Path:
    """The table of that name; raises ``FileNotFoundError`` where there is none."""
    for root in table_roots():
        path = host.inside(root, name)
        if path.is_file():
            return path
    raise FileNotFoundError(f"no table {name!r} in the input folder {host.input_folder()}")


class FluxFitTable:
    """Rows of values, from a file, a grid, or both."""

    DESCRIPTION = (
        "A table for FluxFitBatch: a CSV, JSONL or Parquet file of the input folder, a grid such "
        "as seed=1..8 sampler=euler,heun, or both, every row with every combination. Columns are "
        "called NODE.INPUT (5.seed, FluxSampler.seed), or INPUT alone where one node has it."
    )
    CATEGORY = BATCHES
    FUNCTION = "read"
    SEARCH_ALIASES = ["csv", "jsonl", "parquet", "table", "xy plot", "grid", "prompts from file"]
    RETURN_TYPES = (FLUXFIT_TABLE, "STRING")
    RETURN_NAMES = ("table", "report")
    OUTPUT_TOOLTIPS = ("For FluxFitBatch.", "The table's columns, and what the grid makes of them.")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "table": choice(
                    [*table_names(), NO_TABLE],
                    "A table inside ComfyUI's input folder; (none) for a grid alone.",
                ),
                "grid": text(
                    "",
                    "NAME=VALUES, divided by spaces or lines: seed=1..8, cfg=1,2.5, "
                    "prompt=@prompts.txt (every line of a file of the input folder), "
                    'prompt="a red, round ring",other. Every value with every other.',
                    multiline=True,
                ),
                "mapping": text(
                    "",
                    "Names of columns, one a line: NAME=NODE.INPUT gives a column to an input, "
                    "NAME= leaves it out.",
                    multiline=True,
                ),
            }
        }

    def read(self, table: str, grid: str, mapping: str):
        rows = rows_of(table, grid, mapping)
        report = about(rows)
        return {"ui": {"text": (report,)}, "result": (rows, report)}

    @classmethod
    def IS_CHANGED(cls, table: str, grid: str, mapping: str):
        """Files under their names may be others."""
        from ..batch.grid_text import grid_files

        paths = [*grid_files(grid, host.input_folder())]
        paths += [] if table == NO_TABLE else [table_path(table)]
        stamps = [(p.stat().st_size, p.stat().st_mtime_ns) for p in paths if p.is_file()]
        return str([table, grid, mapping, stamps])


def rows_of(table: str, grid: str, mapping: str) -> RowsOf:
    """What a node's values name; raises ``ConfigError`` for what is none, or outside of the
    folders."""
    from ..batch.grid_text import grid_of_text, mapping_of_text

    path = None if table == NO_TABLE else table_path(table)
    values = grid_of_text(grid, host.input_folder())
    if path is None and not values:
        raise ConfigError("there is neither a table nor a grid: choose one, or write one")
    return RowsOf(path, values, mapping_of_text(mapping))


def about(rows: RowsOf) -> str:
    """Rows in words."""
    from ..batch.grid import size
    from ..batch.progress import counted
    from ..batch.table import open_table

    lines = []
    if rows.path is not None:
        columns = open_table(rows.path).columns
        named = "each row names its own" if columns is None else ", ".join(columns)
        lines.append(f"{rows.path.name}: columns {named}")
    for name, values in rows.grid.items():
        shown = ", ".join(map(str, values[:SHOWN])) + (", …" if len(values) > SHOWN else "")
        lines.append(f"{name}: {counted(len(values), 'value')}: {shown}")
    if rows.grid:
        of = "combinations" if rows.path is None else "pictures of every row"
        lines.append(f"{size(rows.grid):,} {of}")
    return "\n".join(lines)
