"""Tables of Parquet, for which pyarrow is needed: ``pip install fluxfit[parquet]``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flux_core.files import reading

from .table import BrokenRow, Row, TableError

#: Rows that are in memory at a time.
ROWS = 1000


def open_parquet(path: Path) -> Any:
    """The opened file; raises ``TableError`` where pyarrow is missing or it is no Parquet."""
    try:
        import pyarrow.parquet as parquet  # type: ignore[import-not-found]
    except ImportError:
        raise TableError(f"{path}: Parquet needs pyarrow: pip install 'fluxfit[parquet]'") from None
    with reading(path, "Parquet", TableError):
        return parquet.ParquetFile(path)


def parquet_columns(path: Path) -> list[str]:
    with open_parquet(path) as file:
        return list(file.schema_arrow.names)


def parquet_rows(path: Path) -> Iterator[Row | BrokenRow]:
    """Every row, counted from 1."""
    line = 0
    with open_parquet(path) as file, reading(path, "Parquet", TableError):
        for batch in file.iter_batches(batch_size=ROWS):
            for cells in batch.to_pylist():
                line += 1
                yield Row(line, {n.strip(): c for n, c in cells.items() if c is not None})
