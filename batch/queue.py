"""The jobs of one run, on disk while it lasts: in order, each id once, without what is done.

Rows of the same weights follow each other, among them rows of the same LoRAs, among them rows of
the same prompts; where nothing is the same the table's order is kept. A million rows take a file
of some hundred megabytes in the system's folder for such files, and little memory.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from .jobs import Job

#: Jobs that are read from disk at a time, and kibibytes of the file that stay in memory while rows
#: come in any order of their ids, and while they are sorted and read.
PAGE, CACHE_KIB, SORT_KIB = 500, 64 * 1024, 8 * 1024
#: Letters of a broken row's cell that are kept.
LONGEST_KEPT = 10_000
TABLES = """
create table jobs (id blob primary key, number integer, line integer, "values" text,
    weights blob, models blob, prompts blob);
create table again (number integer primary key, line integer, id blob, "values" text);
create table broken (number integer primary key, line integer, problem text, cells text);
create table results (id blob primary key, offset integer, done integer) without rowid;
"""
#: The first row of a group says where the group stands.
ORDER = """
create table queue as select id from (
    select id, number,
        min(number) over (partition by weights) as first_weights,
        min(number) over (partition by models) as first_models,
        min(number) over (partition by prompts) as first_prompts
    from jobs where id not in (select id from results where done)
) order by first_weights, first_models, first_prompts, number
"""
ROWS = """
select number, line, id, "values", null from jobs
union all select number, line, id, "values", null from again
union all select number, line, null, cells, problem from broken
order by number
"""


class QueuedRow(NamedTuple):
    """A row of the table, in its order: the job that it is with its values by ``NODE.INPUT``, or
    what is wrong with it, with its cells by column."""

    line: int
    id: str | None
    values: dict[str, Any]
    problem: str | None


def kept_cell(cell: Any) -> str:
    """A cell of a broken row as a text, so that it can be corrected."""
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_KEPT else text[:LONGEST_KEPT] + " ..."


class JobQueue:
    """Jobs of a run and what is known of them. Rows first, then ``order``, then jobs."""

    def __init__(self) -> None:
        self.base = sqlite3.connect("", isolation_level=None)
        self.base.execute(f"pragma cache_size = -{CACHE_KIB}")
        self.base.execute("pragma synchronous = off")
        self.base.execute("pragma journal_mode = off")
        self.base.executescript(TABLES)
        # one transaction to the end: what is written one by one is fifty times slower
        self.base.execute("begin")
        self.rows = self.duplicates = self.broken_rows = 0

    def close(self) -> None:
        self.base.close()

    def add(self, job: Job, groups: Sequence[bytes]) -> int | None:
        """Take a row; the line of the row that is the same job, where there is one already."""
        self.rows += 1
        key, values = bytes.fromhex(job.id), json.dumps(job.values)
        added = self.base.execute(
            "insert or ignore into jobs values (?, ?, ?, ?, ?, ?, ?)",
            (key, self.rows, job.line, values, *groups),
        )
        if added.rowcount:
            return None
        self.duplicates += 1
        self.base.execute(
            "insert into again values (?, ?, ?, ?)", (self.rows, job.line, key, values)
        )
        return self.one("select line from jobs where id = ?", key)

    def add_broken(
        self, line: int, problem: str, cells: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Take a row that is no job; its cells are kept, but for the end of long ones."""
        self.rows += 1
        self.broken_rows += 1
        kept = json.dumps({name: kept_cell(cell) for name, cell in cells.items()})
        broken = (self.rows, line, problem, kept)
        self.base.execute("insert into broken values (?, ?, ?, ?)", broken)

    def note(self, job_id: str, offset: int, done: bool) -> None:
        """Where the manifest says what became of a job."""
        self.base.execute(
            "insert or replace into results values (?, ?, ?)",
            (bytes.fromhex(job_id), offset, done),
        )

    def result(self, job_id: str) -> tuple[int, bool] | None:
        """Where the manifest says what became of a job, and whether it is done."""
        row = self.base.execute(
            "select offset, done from results where id = ?", (bytes.fromhex(job_id),)
        ).fetchone()
        return None if row is None else (row[0], bool(row[1]))

    def one(self, query: str, *values: Any) -> int:
        return self.base.execute(query, values).fetchone()[0]

    def job(self, job_id: str) -> Job | None:
        """The job of that id, if a row asks for it."""
        row = self.base.execute(
            'select line, "values" from jobs where id = ?', (bytes.fromhex(job_id),)
        ).fetchone()
        return None if row is None else Job(job_id, row[0], json.loads(row[1]))

    @property
    def jobs(self) -> int:
        return self.one("select count(*) from jobs")

    @property
    def earlier(self) -> int:
        """Jobs that are done and that no row of this run asks for."""
        return self.one(
            "select count(*) from results where done and id not in (select id from jobs)"
        )

    def outcome(self) -> tuple[int, int]:
        """How many jobs of this run are done, and how many were tried in vain."""
        done = "select total(done), count(*) from results where id in (select id from jobs)"
        ended, tried = self.base.execute(done).fetchone()
        return int(ended), tried - int(ended)

    def order(self) -> int:
        """Fix the order of what is to be drawn; how many there are."""
        # each sort takes as much memory as the cache may have
        self.base.execute(f"pragma cache_size = -{SORT_KIB}")
        self.base.execute(ORDER)
        return self.one("select count(*) from queue")

    def pending(self) -> Iterator[Job]:
        """What is to be drawn, in order."""
        last = 0
        query = (
            'select queue.rowid, id, line, "values" from queue join jobs using (id) '
            "where queue.rowid > ? order by queue.rowid limit ?"
        )
        while page := self.base.execute(query, (last, PAGE)).fetchall():
            for _, key, line, values in page:
                yield Job(key.hex(), line, json.loads(values))
            last = page[-1][0]

    def broken(self, most: int) -> list[tuple[int, str]]:
        """The first rows that are no jobs, and why."""
        query = "select line, problem from broken order by number limit ?"
        return self.base.execute(query, (most,)).fetchall()

    def all_rows(self) -> Iterator[QueuedRow]:
        """Every row of the table in its order, broken and doubled ones too."""
        for _, line, key, values, problem in self.base.execute(ROWS):
            yield QueuedRow(
                line, None if key is None else key.hex(), json.loads(values or "{}"), problem
            )
