"""Tables of CSV, JSON lines or Parquet, streamed row by row.

A row has the cells that say something: an empty cell, null and a missing key leave what the
workflow has. What is wrong with the whole table raises ``TableError``; what is wrong with one row
is a ``BrokenRow``, and the others go on.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from flux_core.bounds import brief, is_unicode
from flux_core.errors import ConfigError
from flux_core.files import NO_TEXTS, UTF_16, parse_json, reading

#: Bytes of one line, and letters of one cell: more than the longest prompt that a graph takes.
LONGEST_LINE, LONGEST_CELL = 16_000_000, 1_000_000
MOST_COLUMNS = 1000
DELIMITERS = ",;\t"
UTF_8_MARK = b"\xef\xbb\xbf"
CSV, JSON_LINES, PARQUET = (".csv", ".tsv"), (".jsonl", ".ndjson"), (".parquet",)


class TableError(ConfigError):
    """A table cannot be used; the message names it, and the line or column."""


class Row(NamedTuple):
    """One row: where it stands, and its cells by column."""

    line: int
    cells: dict[str, Any]


class BrokenRow(NamedTuple):
    """A row that cannot be used, why, and its cells by column as far as they are known."""

    line: int
    problem: str
    cells: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Table:
    """A table that may be read again and again.

    Attributes:
        columns: names that are known before a row is read; None where each row brings its own.
        unit: what its rows are counted by: lines of a text, rows of Parquet.
    """

    path: Path
    columns: tuple[str, ...] | None
    unit: str = "line"

    def rows(self) -> Iterator[Row | BrokenRow]:
        """Every row in order; raises ``TableError`` where the rest cannot be read."""
        suffix = self.path.suffix.lower()
        if suffix in CSV:
            return csv_rows(self.path)
        if suffix in JSON_LINES:
            return json_rows(self.path)
        from .parquet import parquet_rows

        return parquet_rows(self.path)


def open_table(path: Path) -> Table:
    """A table by its name's ending; raises ``TableError`` for what is none, and
    ``FileNotFoundError``."""
    suffix = path.suffix.lower()
    if suffix not in CSV + JSON_LINES + PARQUET:
        known = ", ".join(CSV + JSON_LINES + PARQUET)
        raise TableError(f"{path}: expected a table that ends in {known}")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise TableError(f"{path}: is a folder, expected a table")
    if suffix in JSON_LINES:
        return Table(path, None)
    if suffix in CSV:
        with reading(path, "a table", TableError):
            return Table(path, tuple(CsvReader(path).header))
    from .parquet import parquet_columns

    return Table(path, checked_names(path, parquet_columns(path)), "row")


def checked_names(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    """Names of columns; raises ``TableError`` where one is empty or there twice."""
    names = tuple(name.strip() for name in names)
    if len(names) > MOST_COLUMNS:
        raise TableError(f"{path}: has {len(names)} columns, expected at most {MOST_COLUMNS}")
    for number, name in enumerate(names, 1):
        if not name:
            raise TableError(f"{path}: column {number} has no name")
        if name in names[: number - 1]:
            raise TableError(f"{path}: there are two columns {name!r}")
    return names


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a text in UTF-8, each bounded; raises ``TableError`` naming the line."""
    with open(path, "rb") as file:
        number = 0
        while raw := file.readline(LONGEST_LINE):
            number += 1
            if number == 1:
                raw = raw.removeprefix(UTF_8_MARK)
                refuse_others(path, raw)
            if len(raw) >= LONGEST_LINE:
                raise TableError(
                    f"{path}: line {number} is longer than {LONGEST_LINE // 1_000_000} MB"
                )
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as fault:
                raise TableError(
                    f"{path}: line {number} is no UTF-8 text (byte {fault.start + 1} is "
                    f"{raw[fault.start]:#04x}): save it as UTF-8"
                ) from fault


def refuse_others(path: Path, start: bytes) -> None:
    """Raise ``TableError`` for what begins as another kind of file."""
    other = next((name for begin, name in NO_TEXTS.items() if start.startswith(begin)), None)
    if start.startswith(UTF_16):
        raise TableError(f"{path}: is no UTF-8 text but UTF-16: save it as UTF-8")
    if other is not None:
        raise TableError(f"{path}: is {other}, expected a table")


class CsvReader:
    """Records of a CSV file after its header, with the line where each begins."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = text_lines(path)
        first = next(lines, "")
        delimiter = delimiter_of(first)
        csv.field_size_limit(LONGEST_CELL)
        self.reader = csv.reader(chained(first, lines), delimiter=delimiter, strict=True)
        try:
            self.header = checked_names(path, next(self.reader, []))
        except csv.Error as fault:
            words = csv_words(fault)
            raise TableError(f"{path}: line 1: {words}, expected names of columns") from fault
        if not self.header:
            raise TableError(f"{path}: is empty, expected names of columns in its first line")

    def records(self) -> Iterator[tuple[int, list[str] | str]]:
        """Line and cells of each record; a text instead of cells says what is wrong with it."""
        while True:
            line = self.reader.line_num + 1
            try:
                record = next(self.reader, None)
            except csv.Error as fault:
                if "limit" in str(fault):  # where the next row begins, nobody knows
                    raise TableError(
                        f"{self.path}: line {line}: a cell is longer than {LONGEST_CELL} letters: "
                        "is a quotation mark not closed?"
                    ) from fault
                yield line, self.problem(line, csv_words(fault))
                continue
            if record is None:
                return
            if record:
                yield line, record

    def problem(self, line: int, fault: str) -> str:
        """What a damaged record is, and where it ends."""
        last = self.reader.line_num
        return fault if last <= line else f"{fault}, read up to line {last}"


def csv_words(fault: csv.Error) -> str:
    """What is wrong with a CSV file, in words."""
    if "new-line character" in str(fault):
        return "a line ends in a carriage return alone: save the table with line ends LF or CR LF"
    if "unexpected end" in str(fault):
        return "a quotation mark is not closed"
    return str(fault)


def chained(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def delimiter_of(header: str) -> str:
    """What stands between the names of columns, outside of quotation marks."""
    outside = "".join(header.split('"')[::2])
    return max(DELIMITERS, key=outside.count)


def csv_rows(path: Path) -> Iterator[Row | BrokenRow]:
    with reading(path, "a table", TableError):
        reader = CsvReader(path)
        names = reader.header
        for line, record in reader.records():
            if isinstance(record, str):
                yield BrokenRow(line, record)
            elif len(record) != len(names):
                cells = f"{len(record)} cell{'s' * (len(record) != 1)}"
                known = dict(zip(names, record, strict=False))
                yield BrokenRow(line, f"{cells}, expected {len(names)}", known)
            else:
                yield Row(line, {n: c for n, c in zip(names, record, strict=True) if c})


def json_rows(path: Path) -> Iterator[Row | BrokenRow]:
    with reading(path, "a table", TableError):
        for line, text in enumerate(text_lines(path), 1):
            if not text.strip():
                continue
            try:
                yield Row(line, json_cells(text))
            except RecursionError:
                yield BrokenRow(line, "it is nested without end")
            except json.JSONDecodeError as fault:
                yield BrokenRow(line, f"no JSON ({fault.msg} at letter {fault.pos + 1})")
            except ValueError as fault:
                yield BrokenRow(line, str(fault))


def json_cells(text: str) -> dict[str, Any]:
    """The cells of one JSON object; raises ``ValueError`` for anything else."""
    cells = parse_json(text, pairs=once)
    if not isinstance(cells, dict):
        raise ValueError(f"expected a JSON object, found {type(cells).__name__}")
    if len(cells) > MOST_COLUMNS:
        raise ValueError(f"{len(cells)} keys, expected at most {MOST_COLUMNS}")
    for name in cells:
        if not is_unicode(name):
            raise ValueError(f"the key {brief(name)} is no Unicode: it has half a character")
    return {name: cell for name, cell in cells.items() if cell is not None}


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its keys and values; raises ``ValueError`` where a key is there twice."""
    cells: dict[str, Any] = {}
    for name, cell in pairs:
        if name in cells:
            raise ValueError(f"{name!r} is there twice")
        cells[name] = cell
    return cells
