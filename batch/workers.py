"""Who draws: workers take jobs when they are free, and give results in whatever order."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from flux_core.errors import one_line
from flux_core.files import reason

from .draw import Drawer, Drawn
from .jobs import Job
from .progress import QUIET


@dataclass(frozen=True)
class Result:
    """What became of one try of a job.

    Attributes:
        error: what went wrong, on one line; None where ``drawn`` has the job's pictures.
        retryable: whether another try might end otherwise; what a node refuses it always refuses.
        seconds: that drawing took.
        worker: the name of who drew.
    """

    job: Job
    drawn: list[Drawn] = field(default_factory=list)
    error: str | None = None
    retryable: bool = True
    seconds: float = 0.0
    worker: str = ""


class Workers(Protocol):
    """Everybody who draws."""

    def results(self, jobs: Iterator[Job]) -> Generator[Result, None, None]:
        """Results as they come; a job is pulled (``next(jobs, None)``) when somebody is free.

        ``jobs`` may have more after it had none: a failed job comes back into it once its result
        was taken. So who has had None asks again after every result, and ends when there is None
        and nobody draws. Closing the iterator ends what is being drawn.
        """
        ...


class LocalWorker:
    """Draws in this process, one job after another."""

    def __init__(self, drawer: Drawer, name: str = "local") -> None:
        self.drawer, self.name = drawer, name

    def results(self, jobs: Iterator[Job]) -> Generator[Result, None, None]:
        while (job := next(jobs, None)) is not None:
            with quiet_nodes():
                result = attempt(self.drawer, job, self.name)
            yield result


@contextmanager
def quiet_nodes() -> Iterator[None]:
    """Nodes show no bars of their own inside the block: there is one for all jobs."""
    before = os.environ.get(QUIET)
    os.environ[QUIET] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[QUIET]
        else:
            os.environ[QUIET] = before


def attempt(drawer: Drawer, job: Job, worker: str) -> Result:
    """Draw a job once; what goes wrong is in the result, and an interrupt passes."""
    started = time.monotonic()
    try:
        drawn = drawer.draw(job)
    except Exception as error:
        return Result(
            job,
            error=in_words(error),
            retryable=may_differ(error),
            seconds=time.monotonic() - started,
            worker=worker,
        )
    return Result(job, drawn, seconds=time.monotonic() - started, worker=worker)


def may_differ(error: Exception) -> bool:
    """Whether another try might end otherwise: not where the input is at fault."""
    return not isinstance(error, ValueError | TypeError | KeyError | FileNotFoundError)


def in_words(error: Exception) -> str:
    """A failure on one line; of a fault that is nobody's input its kind too."""
    words = one_line(reason(error))
    return words if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {words}"
