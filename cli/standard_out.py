"""What a command prints on stdout, which may be full, or a pipe that nobody reads any more."""

from __future__ import annotations

import contextlib
import os
import sys

from .exit_codes import FAILED


def printed(text: str, status: int) -> int:
    """Print a text; returns ``status``, or that of a failure where it cannot be written, which is
    then one line on stderr. A pipe that was closed ends quietly: who reads has enough."""
    try:
        if text:
            print(text, flush=True)
    except BrokenPipeError:
        discard_stdout()
    except OSError as error:
        discard_stdout()
        complain(f"stdout: {error.strerror or error}")
        return status or FAILED
    return status


def complain(message: str) -> None:
    """One line on stderr, where there is one to be written."""
    with contextlib.suppress(OSError):
        print(f"fluxfit: {message}", file=sys.stderr, flush=True)


def discard_stdout() -> None:
    """Have Python not try again at its end what could not be written."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
