"""The order of jobs, and what a large table costs."""

from __future__ import annotations

import hashlib
import tracemalloc

from fluxfit.batch.jobs import Job
from fluxfit.batch.queue import JobQueue


def job(number: int, **values) -> Job:
    return Job(hashlib.sha256(str(number).encode()).hexdigest()[:24], number, values)


def filled(rows):
    """A queue of rows given as weights, LoRA and prompt."""
    queue = JobQueue()
    for line, (weights, lora, prompt) in enumerate(rows):
        groups = [weights, weights + lora, weights + lora + prompt]
        queue.add(job(line), [group.encode() for group in groups])
    return queue


def test_what_is_dear_changes_as_rarely_as_possible():
    rows = ["Axp", "Byp", "Axq", "Ayp", "Bxp", "Axp", "Byq", "Axq"]
    queue = filled(rows)
    assert queue.order() == len(rows)
    order = [rows[one.line] for one in queue.pending()]
    assert order == ["Axp", "Axp", "Axq", "Axq", "Ayp", "Byp", "Byq", "Bxp"]


def test_where_nothing_is_the_same_the_order_is_the_tables():
    queue = filled([f"{chr(122 - n)}--" for n in range(20)])
    queue.order()
    assert [one.line for one in queue.pending()] == list(range(20))


def test_what_is_done_is_left_out_and_doubles_are_told():
    queue = JobQueue()
    queue.note(job(1).id, 100, True)
    queue.note(job(2).id, 200, False)
    queue.note(job(9).id, 300, True)
    earlier = [queue.add(job(number), [b"", b"", b""]) for number in (1, 2, 3)]
    doubled = Job(job(2).id, 17, {})
    assert earlier == [None, None, None] and queue.add(doubled, [b"", b"", b""]) == 2
    queue.add_broken(18, "no row")
    assert queue.order() == 2
    assert [one.line for one in queue.pending()] == [2, 3]
    assert (queue.rows, queue.jobs, queue.duplicates, queue.earlier) == (5, 3, 1, 1)
    assert [(row.line, row.problem) for row in queue.all_rows()] == [
        (1, None),
        (2, None),
        (3, None),
        (17, None),
        (18, "no row"),
    ]


def test_rows_lie_on_disk():
    queue = JobQueue()
    tracemalloc.start()
    for number in range(20_000):
        queue.add(job(number, **{"3.prompt": 100 * "x"}), [b"a", b"b", b"c"])
    queue.order()
    assert sum(1 for _ in queue.pending()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # a twentieth of what the rows take
