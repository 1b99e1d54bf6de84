"""Jobs on several devices at once: under the caller's state, and all ended whatever happens."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar

import pytest
import torch

from flux_core.offload.drivers import Drivers, StoppedError

DEVICES = [torch.device("cpu"), torch.device("cpu", 1), torch.device("cpu", 2)]
MARK: ContextVar[str] = ContextVar("mark", default="")


def test_jobs_run_at_the_same_time_and_results_are_in_order():
    meeting = threading.Barrier(3, timeout=20)

    def job(number: int) -> tuple[int, str]:
        meeting.wait()
        return number, threading.current_thread().name

    with Drivers(DEVICES) as drivers:
        results = drivers.each([lambda n=n: job(n) for n in range(3)])
        assert [number for number, _ in results] == [0, 1, 2]
        names = [name for _, name in results]
        assert names[0] == threading.current_thread().name
        assert names[1].startswith("fluxfit-cpu:1") and names[2].startswith("fluxfit-cpu:2")
        assert drivers.each([lambda: 7]) == [7]  # fewer than devices
    assert not any(t.name.startswith("fluxfit-cpu") for t in threading.enumerate())


def test_every_thread_has_the_caller_s_state():
    def state() -> tuple:
        doubled = torch.ones(1, requires_grad=True) * 2
        autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")
        return (
            torch.is_inference_mode_enabled(),
            torch.is_grad_enabled(),
            doubled.requires_grad,
            *autocast,
            MARK.get(),
        )

    MARK.set("here")
    with Drivers(DEVICES) as drivers:
        for mode in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
            with mode:
                mine, *others = drivers.each([state] * 3)
                assert mine[-1] == "here" and all(other == mine for other in others)
        with torch.autocast("cpu", torch.float16):
            mine, *others = drivers.each([state] * 3)
            assert mine[3:5] == (True, torch.float16) and all(other == mine for other in others)


@pytest.mark.parametrize("failing", range(3))
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_where_one_fails_the_others_stop_and_all_have_ended(failing, error):
    ended = []

    def job(number: int, drivers: Drivers) -> None:
        try:
            if number == failing:
                raise error
            for _ in range(2000):
                drivers.check()
                time.sleep(0.01)
        finally:
            ended.append(number)

    with Drivers(DEVICES) as drivers:
        with pytest.raises(type(error)) as raised:
            drivers.each([lambda n=n: job(n, drivers) for n in range(3)])
        assert raised.value is error and sorted(ended) == [0, 1, 2]
        with pytest.raises(StoppedError):
            drivers.check()
