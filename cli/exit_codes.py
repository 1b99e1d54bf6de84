"""How a command ends: its exit status, and the word that ``--json`` has for it.

Nothing is imported to tell one: an error of torch can only have come where torch is there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

DONE, FAILED, BAD_INPUT, MISSING, OUT_OF_MEMORY, INTERRUPTED = 0, 1, 2, 3, 4, 130
#: What went wrong, by exit status.
KINDS = {
    FAILED: "failed",
    BAD_INPUT: "bad_input",
    MISSING: "missing",
    OUT_OF_MEMORY: "out_of_memory",
    INTERRUPTED: "interrupted",
}
#: How torch words it where it raises a plain ``RuntimeError``.
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC")


class UsageError(ValueError):
    """Arguments that do not fit a command."""


def exit_code(error: BaseException) -> int:
    """The exit status of an error, by what it came from: a file that cannot be read because there
    is none is missing, whatever is said of it."""
    causes = list(causes_of(error))
    if any(isinstance(cause, KeyboardInterrupt) for cause in causes):
        return INTERRUPTED
    if any(is_out_of_memory(cause) for cause in causes):
        return OUT_OF_MEMORY
    if any(isinstance(cause, FileNotFoundError) for cause in causes):
        return MISSING
    if isinstance(error, ValueError) and not isinstance(error, ArithmeticError):
        return BAD_INPUT
    return FAILED


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the host or of a device ran out."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)
