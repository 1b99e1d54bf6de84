"""Which worker draws which job: one job a worker at a time, pulled when the worker is free.

So a slow card takes fewer, and when the jobs are at their end no worker waits longer than one job
takes the slowest: nobody has a second one in hand. A worker that dies loses nothing; its job goes
to the next free one. Where workers run, and how they are reached, a ``Pool`` knows.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from .jobs import Job
from .workers import Result

#: Workers that may die over one job: a machine may fail once and again, but a job that always kills
#: must not go round for ever.
MOST_DEATHS = 3


@dataclass(frozen=True)
class Ready:
    """A worker has started, or started again, and has nothing to do."""

    worker: int


@dataclass(frozen=True)
class Finished:
    """A worker has drawn its job, or found that it cannot be drawn."""

    worker: int
    result: Result


@dataclass(frozen=True)
class Lost:
    """A worker is gone with the job that it had.

    Attributes:
        reason: why, on one line.
        guilty: whether the job may be why; not where the worker's machine is at fault.
    """

    worker: int
    reason: str
    guilty: bool = True


Event = Ready | Finished | Lost


class Pool(Protocol):
    """Workers by number. A pool starts its workers, and those that are gone again."""

    def send(self, worker: int, job: Job) -> None:
        """Give a free worker a job."""
        ...

    def wait(self) -> Event:
        """The next thing that happens; raises where no worker is left, and none will come."""
        ...


@dataclass
class Dispatcher:
    """Jobs on their way.

    Attributes:
        free: workers with nothing to do; who has waited longest is first.
        busy: what each of the others draws.
        back: jobs of workers that are gone.
        deaths: of workers, by the job that they had.
    """

    pool: Pool
    jobs: Iterator[Job]
    free: deque[int] = field(default_factory=deque)
    busy: dict[int, Job] = field(default_factory=dict)
    back: deque[Job] = field(default_factory=deque)
    deaths: Counter[str] = field(default_factory=Counter)

    def results(self) -> Generator[Result, None, None]:
        """Results as they come, until there is no job and nobody draws."""
        while True:
            self.send_jobs()
            if self.free and not self.busy:
                return
            result = self.note(self.pool.wait())
            if result is not None:
                self.deaths.pop(result.job.id, None)
                self.send_jobs()  # who takes the result may need a moment for it
                yield result

    def send_jobs(self) -> None:
        """Give jobs to whoever is free, as long as there are any."""
        while self.free:
            job = self.back.popleft() if self.back else next(self.jobs, None)
            if job is None:
                return
            worker = self.free.popleft()
            self.busy[worker] = job
            self.pool.send(worker, job)

    def note(self, event: Event) -> Result | None:
        """Note what happened; a result where a job is over."""
        if isinstance(event, Ready):
            self.free.append(event.worker)
            return None
        job = self.busy.pop(event.worker, None)
        if isinstance(event, Finished):
            self.free.append(event.worker)
            return event.result
        if event.worker in self.free:
            self.free.remove(event.worker)
        if job is None:
            return None
        self.deaths[job.id] += event.guilty
        if self.deaths[job.id] < MOST_DEATHS:
            self.back.append(job)
            return None
        error = f"{MOST_DEATHS} workers died while they drew it, the last one so: {event.reason}"
        return Result(job, error=error, retryable=False)


def dispatch(pool: Pool, jobs: Iterator[Job]) -> Generator[Result, None, None]:
    """Have a pool draw jobs; results come in whatever order.

    ``jobs`` may have more after it had none, once a result was taken (see ``Workers``). Raises what
    ``pool.wait`` raises.
    """
    return Dispatcher(pool, jobs).results()
