"""From a table and a grid to a queue of jobs; what is wrong with single rows is told and noted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flux_core.errors import ConfigError

from .columns import ColumnError, Columns
from .grid import Grid, combinations
from .jobs import BrokenGraphError, JobMaker
from .progress import counted
from .queue import JobQueue
from .table import BrokenRow, Row, Table

#: Rows that are told of one by one.
MOST_TOLD = 20
#: Rows between looks at how far reading is.
LOOK = 2000

Say = Callable[[str], None]


class NothingToDrawError(ConfigError):
    """Every row of the table is wrong; the message has the first."""


@dataclass
class RowReport:
    """Tells of rows that are not drawn: the first of them one by one, the rest as a number."""

    say: Say
    count: int = 0

    def __call__(self, text: str) -> None:
        self.count += 1
        if self.count <= MOST_TOLD:
            self.say(text)

    def close(self) -> None:
        if self.count > MOST_TOLD:
            self.say(
                f"and {counted(self.count - MOST_TOLD, 'more such row')}, which results.csv names"
            )


def find_columns(columns: Columns, table: Table | None, grid: Grid) -> None:
    """Look up all names that are known before rows are read, and a grid's values.

    Raises ``ConfigError`` for the first that is wrong.
    """
    for name, values in grid.items():
        column = columns.find(name, "--grid")
        if column is None:
            continue
        try:
            for value in values:
                column.value(value)
        except ValueError as fault:
            raise ConfigError(f"--grid {name}: {fault}") from fault
    if table is None:
        columns.check_mapping(grid, "--grid")
    else:
        known = None if table.columns is None else {*table.columns, *grid}
        columns.check_mapping(known, f"{table.path} or --grid")
        for name in table.columns or ():
            refuse_twice(name, grid, str(table.path))
            columns.find(name, str(table.path))


def refuse_twice(name: str, grid: Grid, source: str) -> None:
    """Raise ``ColumnError`` for a column of the table that the grid has too."""
    if name in grid:
        raise ColumnError(f"{source}: column {name!r} is in --grid too")


def rows_of(table: Table | None, grid: Grid) -> Iterator[Row | BrokenRow]:
    """Every row of the table with every combination of the grid; without a table these alone,
    numbered from 1."""
    if table is None:
        for number, cells in enumerate(combinations(grid), 1):
            yield Row(number, cells)
        return
    for row in table.rows():
        if isinstance(row, BrokenRow) or not grid:
            yield row
        else:
            for name in row.cells:
                refuse_twice(name, grid, f"{table.path}: {table.unit} {row.line}")
            for cells in combinations(grid):
                yield Row(row.line, row.cells | cells)


def fill_queue(
    queue: JobQueue,
    maker: JobMaker,
    table: Table | None,
    grid: Grid,
    say: Say,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> None:
    """Make jobs of all rows; raises ``NothingToDrawError`` where none can be drawn, ``ConfigError``
    where the table cannot be read to its end."""
    source = "--grid" if table is None else str(table.path)
    unit = "combination" if table is None else table.unit
    report = RowReport(say)
    first = ""
    find_columns(maker.columns, table, grid)
    for row in rows_of(table, grid):
        problem = add_row(queue, maker, row, f"{source}: {unit} {row.line}")
        if problem:
            first = first or problem
            report(problem)
        if queue.rows % LOOK == 0:
            on_rows(queue.rows)
    report.close()
    for name in maker.columns.mapping:
        if name not in maker.columns.by_name:  # where each row brings its own columns
            say(f"mapping {name}={maker.columns.mapping[name]}: no row of {source} has it")
    if not queue.rows:
        raise ConfigError(f"{source}: has no row")
    if queue.rows == queue.broken_rows:
        raise NothingToDrawError(
            f"none of {counted(queue.rows, 'row')} can be drawn; the first: {first}"
        )


def add_row(queue: JobQueue, maker: JobMaker, row: Row | BrokenRow, where: str) -> str:
    """Put a row into the queue; what there is to say of it."""
    if isinstance(row, BrokenRow):
        queue.add_broken(row.line, row.problem, row.cells)
        return f"{where}: {row.problem}: left out"
    try:
        job = maker.job(row.line, row.cells, where)
    except (ColumnError, BrokenGraphError):
        raise
    except (ValueError, OSError) as fault:
        queue.add_broken(row.line, str(fault), row.cells)
        return f"{where}: {fault}: left out"
    earlier = queue.add(job, maker.columns.groups(job.values))
    return "" if earlier is None else f"{where}: asks for the same as that of {earlier}: drawn once"


def shown_values(
    columns: Sequence[Any], values: Mapping[str, Any], private: bool
) -> dict[str, Any]:
    """A job's values by the names of columns; without texts where these are private."""
    return {
        column.name: values[column.target]
        for column in columns
        if column.target in values and not (private and column.is_text)
    }
