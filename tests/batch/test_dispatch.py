"""Which worker draws which job, over workers that only keep a clock."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Iterator

import pytest
from fluxfit.batch.dispatch import MOST_DEATHS, Event, Finished, Lost, Ready, dispatch
from fluxfit.batch.jobs import Job
from fluxfit.batch.run import JobFeed
from fluxfit.batch.workers import Result

SPEEDS = (1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 4.0, 4.0)


def jobs_of(lengths: list[float]) -> list[Job]:
    return [Job(f"{n:024x}", n, {"length": length}) for n, length in enumerate(lengths)]


class ClockPool:
    """Workers of given speeds; time passes as they finish.

    ``deaths`` are, by job, how often its worker dies in the middle of it; ``unfit`` workers give
    every job back.
    """

    def __init__(
        self,
        speeds: tuple[float, ...],
        deaths: dict[str, int] | None = None,
        unfit: tuple[int, ...] = (),
    ) -> None:
        self.speeds, self.deaths, self.unfit = speeds, Counter(deaths or {}), unfit
        self.clock = 0.0
        self.order = 0
        self.events: list[tuple[float, int, Event]] = []
        self.ended = dict.fromkeys(range(len(speeds)), 0.0)
        self.drawn: Counter[int] = Counter()
        self.most_in_hand = self.in_hand = 0
        for worker in range(len(speeds)):
            self.add(0.0, Ready(worker))

    def add(self, seconds: float, event: Event) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.clock + seconds, self.order, event))

    def send(self, worker: int, job: Job) -> None:
        self.in_hand += 1
        self.most_in_hand = max(self.most_in_hand, self.in_hand)
        seconds = job.values["length"] / self.speeds[worker]
        if worker in self.unfit:
            self.add(0.0, Lost(worker, "no such model", guilty=False))
        elif self.deaths[job.id] > 0:
            self.deaths[job.id] -= 1
            self.add(seconds / 2, Lost(worker, "killed"))
            self.add(seconds / 2 + 1.0, Ready(worker))
        else:
            self.add(seconds, Finished(worker, Result(job, worker=str(worker))))

    def wait(self) -> Event:
        if not self.events:
            raise FileNotFoundError("no worker is left")
        self.clock, _, event = heapq.heappop(self.events)
        if not isinstance(event, Ready):
            self.in_hand -= 1
        if isinstance(event, Finished):
            self.ended[event.worker] = self.clock
            self.drawn[event.worker] += 1
        return event

    @property
    def tail(self) -> float:
        """How long the worker that ended first waits for the last."""
        return max(self.ended.values()) - min(self.ended.values())


def counts(results: list[Result]) -> Counter[str]:
    return Counter(result.job.id for result in results)


@pytest.mark.parametrize("seed", range(20))
def test_nobody_waits_longer_at_the_end_than_one_job_takes_the_slowest(seed):
    rng = random.Random(seed)
    lengths = [rng.uniform(1, 10) for _ in range(rng.randint(40, 200))]
    pool = ClockPool(SPEEDS)
    results = list(dispatch(pool, iter(jobs_of(lengths))))
    assert counts(results) == Counter(job.id for job in jobs_of(lengths))
    assert 0 < pool.tail < max(lengths) / min(SPEEDS)


def test_a_card_of_four_times_the_speed_draws_four_times_as_much():
    pool = ClockPool(SPEEDS)
    list(dispatch(pool, iter(jobs_of([1.0] * 1700))))
    assert [pool.drawn[worker] for worker in range(8)] == pytest.approx(
        [100 * speed for speed in SPEEDS], rel=0.02
    )


def test_a_job_is_pulled_only_when_a_worker_is_free():
    pool = ClockPool((1.0, 2.0))
    pulled = []

    def jobs() -> Iterator[Job]:
        for job in jobs_of([1.0] * 20):
            pulled.append(job)
            yield job

    for taken, _ in enumerate(dispatch(pool, jobs()), 1):
        assert len(pulled) <= taken + 2
    assert pool.most_in_hand == 2


def test_a_worker_that_dies_repeats_its_job_alone():
    jobs = jobs_of([1.0] * 30)
    pool = ClockPool((1.0, 1.5, 2.0), deaths={jobs[3].id: 1, jobs[17].id: 2, jobs[29].id: 1})
    results = list(dispatch(pool, iter(jobs)))
    assert counts(results) == Counter(job.id for job in jobs)
    assert not any(result.error for result in results)


def test_a_job_that_always_kills_its_worker_fails_and_the_others_do_not():
    jobs = jobs_of([1.0] * 10)
    pool = ClockPool((1.0, 1.0), deaths={jobs[4].id: 1000})
    results = list(dispatch(pool, iter(jobs)))
    failed = [result for result in results if result.error]
    assert [result.job for result in failed] == [jobs[4]] and len(results) == 10
    assert "3 workers died" in str(failed[0].error) and not failed[0].retryable
    assert pool.deaths[jobs[4].id] == 1000 - MOST_DEATHS


def test_jobs_of_workers_that_cannot_draw_go_to_those_that_can():
    jobs = jobs_of([1.0] * 10)
    pool = ClockPool((1.0,) * 6, unfit=(0, 1, 2, 3, 4))
    results = list(dispatch(pool, iter(jobs)))
    assert counts(results) == Counter(job.id for job in jobs)
    assert {result.worker for result in results} == {"5"}


def test_without_any_worker_it_ends_with_the_reason():
    with pytest.raises(FileNotFoundError, match="no worker is left"):
        list(dispatch(ClockPool((1.0, 1.0), unfit=(0, 1)), iter(jobs_of([1.0] * 3))))


def test_a_failed_job_that_comes_back_is_drawn_again_even_at_the_end():
    jobs = jobs_of([1.0] * 5)
    feed = JobFeed(iter(jobs), None)
    taken: Counter[str] = Counter()
    for result in dispatch(ClockPool((1.0, 4.0)), feed):
        taken[result.job.id] += 1
        if result.job in (jobs[0], jobs[4]) and taken[result.job.id] < 3:
            feed.back.append(result.job)
    assert [taken[job.id] for job in jobs] == [3, 1, 1, 1, 3]


def test_without_jobs_it_ends_at_once():
    assert list(dispatch(ClockPool(SPEEDS), iter([]))) == []
