"""A pool of workers over a Ray that only answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fluxfit.batch import ray_workers
from fluxfit.batch.dispatch import Event, Lost, Ready
from fluxfit.batch.jobs import Job
from fluxfit.batch.ray_cluster import Placement
from fluxfit.batch.ray_workers import MOST_STARTS, PATIENCE, RayPool

from flux_core.errors import ConfigError

JOB = Job("a" * 24, 2, {})
READY = {"node": "n1", "host": "here", "torch": "2", "device": "cpu"}


class RayError(Exception):
    pass


class RayTaskError(RayError):
    cause = RuntimeError("CUDA error: an illegal memory access")


class FakeRay:
    """Answers calls in turn; without an answer it waits."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    cloudpickle = SimpleNamespace(register_pickle_by_value=lambda module: None)

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.started = 0
        self.timeouts: list[float | None] = []

    def remote(self, _: type) -> FakeRay:
        return self

    def options(self, **_: Any) -> SimpleNamespace:
        def start() -> SimpleNamespace:
            self.started += 1
            call = SimpleNamespace(remote=lambda _: object())
            return SimpleNamespace(start=call, draw=call)

        return SimpleNamespace(remote=start)

    def wait(self, calls: list, timeout: float | None, **_: Any) -> tuple[list, list]:
        self.timeouts.append(timeout)
        return calls[:1], calls[1:]

    def get(self, _: object) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def kill(self, _: object) -> None:
        pass


def pool_of(ray: FakeRay, lines: list[str]) -> RayPool:
    files = SimpleNamespace(needed=lambda job: [])
    pool = RayPool(ray, Placement(1, 1, 0, 1), {}, files, lines.append)  # type: ignore[arg-type]
    pool.start()
    return pool


def test_a_worker_that_fails_to_start_is_not_started_for_ever(monkeypatch):
    node = {"NodeID": "n1", "Resources": {"CPU": 8.0}}
    monkeypatch.setattr(ray_workers, "live_nodes", lambda: [node])
    lines: list[str] = []
    ray = FakeRay(*[RayTaskError() for _ in range(10)])
    with pytest.raises(ConfigError, match="illegal memory access.*3 times while it started"):
        pool_of(ray, lines).wait()
    assert ray.started == MOST_STARTS and "is not started again" in lines[-1]


def test_where_no_worker_is_left_it_tells_what_it_waits_for():
    ray = FakeRay(READY, RayError("killed"), READY)
    pool = pool_of(ray, [])
    events: list[Event] = [pool.wait()]
    pool.send(0, JOB)
    events += [pool.wait(), pool.wait()]
    assert [type(event) for event in events] == [Ready, Lost, Ready]
    assert ray.timeouts == [PATIENCE, None, PATIENCE]
