"""One thread a device: what several devices compute at once, and how all of them end together.

    caller   | job 0 ........ | waits  | results
    thread 1 | job 1 ............. |
    thread 2 | job 2 .......... |

The caller drives the first device itself. What torch keeps a thread (inference mode, gradients,
autocast, context variables) is the caller's in every thread. A stream of work is waited for at both
ends of a job, so that tensors go from device to device as they are, whatever streams they were
made on: that is once a step of a picture.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, nullcontext
from typing import TypeVar

import torch

T = TypeVar("T")
#: Kinds of devices whose autocast is the caller's.
AUTOCAST = ("cpu", "cuda")


class StoppedError(Exception):
    """Ends a job whose run has failed on another device."""


class ThreadState:
    """What torch keeps a thread, as it is in the thread that asks."""

    def __init__(self) -> None:
        self.inference = torch.is_inference_mode_enabled()
        self.gradients = torch.is_grad_enabled()
        self.autocast = [
            (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
            for kind in AUTOCAST
        ]
        self.cache = torch.is_autocast_cache_enabled()
        self.context = contextvars.copy_context()

    def run(self, device: torch.device, job: Callable[[], T]) -> T:
        """Call a job in another thread under this state, with a device that is the current one."""

        def inside() -> T:
            with ExitStack() as stack:
                stack.enter_context(on(device))
                stack.enter_context(torch.inference_mode(self.inference))
                stack.enter_context(torch.set_grad_enabled(self.gradients))
                for kind, dtype, enabled in self.autocast:
                    stack.enter_context(torch.autocast(kind, dtype, enabled, self.cache))
                return job()

        return self.context.copy().run(inside)


def on(device: torch.device):
    """A device is the current one inside the block, where it is a card."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def wait_for(device: torch.device) -> None:
    """Wait for what this thread has asked of a device so far."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class Drivers:
    """Calls jobs on several devices at once; ``with`` ends its threads."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self.devices = list(devices)
        self.stopped = threading.Event()
        self.threads = [ThreadPoolExecutor(1, f"fluxfit-{device}") for device in devices[1:]]

    def __enter__(self) -> Drivers:
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self.threads:
            thread.shutdown(wait=True, cancel_futures=True)

    def check(self) -> None:
        """Called inside of a job: end it where the run has failed already."""
        if self.stopped.is_set():
            raise StoppedError

    def each(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Results of jobs, at most one a device, the first of them in this thread.

        When it returns or raises, all have ended. It raises what the first that failed did.
        """
        state = ThreadState()
        wait_for(self.devices[0])
        futures = [
            thread.submit(state.run, device, self.watched(job, device))
            for thread, device, job in zip(self.threads, self.devices[1:], jobs[1:], strict=False)
        ]
        try:
            result = self.watched(jobs[0], self.devices[0])()
            wait(futures)
        except BaseException as error:
            self.stopped.set()
            wait(futures)
            raise first_cause(error, futures) or error from None
        failed = first_cause(None, futures)
        if failed is not None:
            raise failed
        return [result, *(future.result() for future in futures)]

    def watched(self, job: Callable[[], T], device: torch.device) -> Callable[[], T]:
        """A job that tells the others where it fails, and ends when its device has done it."""

        def run() -> T:
            try:
                result = job()
                for each in {device, self.devices[0]}:
                    wait_for(each)
                return result
            except BaseException:
                self.stopped.set()
                raise

        return run


def first_cause(error: BaseException | None, futures: Sequence[Future[T]]) -> BaseException | None:
    """Of what was raised in this thread and in others that which made the rest stop."""
    raised = [error, *(future.exception() for future in futures if not future.cancelled())]
    causes = [each for each in raised if each is not None and not isinstance(each, StoppedError)]
    return causes[0] if causes else error
