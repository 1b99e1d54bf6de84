"""Grids: ``seed=1..8 sampler=euler,heun prompt=@prompts.txt``, every value with every other.

Values are divided by commas, with quotation marks around one that has a comma in it. ``a..b`` is
every whole number from a to b, ``a..b..step`` every number at a step, ``@file`` every line of a
text file.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from flux_core.errors import ConfigError
from flux_core.files import read_text

#: Values of one name, and rows that all make together.
MOST_VALUES, MOST_ROWS = 1_000_000, 100_000_000
NUMBER = r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})(?:\.\.({NUMBER}))?")

Grid = Mapping[str, Sequence[Any]]


def read_grid(arguments: Iterable[str]) -> dict[str, list[Any]]:
    """Values by name; raises ``ConfigError`` naming the argument that says none."""
    grid: dict[str, list[Any]] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        name = name.strip()
        if not (equals and name):
            raise ConfigError(f"--grid {argument!r}: expected NAME=VALUES")
        if name in grid:
            raise ConfigError(f"--grid {argument!r}: {name!r} is there twice")
        grid[name] = values_of(text, f"--grid {argument!r}")
        if not grid[name]:
            raise ConfigError(f"--grid {argument!r}: no value")
    rows = size(grid)
    if rows > MOST_ROWS:
        raise ConfigError(f"--grid: {rows} combinations, expected at most {MOST_ROWS}")
    return grid


def values_of(text: str, where: str) -> list[Any]:
    if text.startswith("@"):
        lines = read_text(Path(text[1:])).splitlines()
        return [line for line in lines if line.strip()]
    try:
        (parts,) = csv.reader([text], strict=True, skipinitialspace=True)
    except (csv.Error, ValueError) as fault:
        raise ConfigError(f"{where}: {fault}") from fault
    values: list[Any] = []
    for part in parts:
        match = RANGE.fullmatch(part.strip())
        values += span(match, where) if match else [part]
        if len(values) > MOST_VALUES:
            raise ConfigError(f"{where}: more than {MOST_VALUES} values")
    return values


def span(match: re.Match[str], where: str) -> list[int | float]:
    """Numbers from the first to the last, which is among them where a step meets it."""
    first, last = Decimal(match[1]), Decimal(match[2])
    step = Decimal(match[3]) if match[3] else Decimal(1 if last >= first else -1)
    if not step or (last - first) * step < 0:
        raise ConfigError(f"{where}: {match[0]} never comes to {last} by steps of {step}")
    count = int((last - first) / step) + 1
    if count > MOST_VALUES:
        raise ConfigError(f"{where}: more than {MOST_VALUES} values")
    whole = all(n == n.to_integral_value() for n in (first, step))
    numbers = (first + i * step for i in range(count))
    return [int(n) if whole else float(n) for n in numbers]


def size(grid: Grid) -> int:
    """How many rows a grid makes of one."""
    rows = 1
    for values in grid.values():
        rows *= len(values)
    return rows


def combinations(grid: Grid) -> Iterator[dict[str, Any]]:
    """Every value with every other, the last name's changing fastest."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))
