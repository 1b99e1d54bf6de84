"""Bounds of numbers, checked before anything runs; what is no number is refused like the rest."""

from __future__ import annotations

import math
from numbers import Integral, Rational, Real
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from .errors import CheckpointError, one_line

if TYPE_CHECKING:
    from torch import Tensor

#: Seeds as the host has them, 64 bits.
MOST_SEED = 2**64 - 1
MOST_STEPS = 10_000
#: Letters of a value in a message.
LONGEST_BRIEF = 100


def check_number(
    value: object,
    name: str,
    low: float,
    high: float | None = None,
    *,
    whole: bool = False,
    error: type[ValueError] = ValueError,
) -> None:
    """Raise ``error`` for what is no finite number in [low, high], or below where high is None."""
    span = f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
    kind = Integral if whole else Real
    # exact fractions are numbers that torch does not take
    fits = isinstance(value, kind) and (not isinstance(value, Rational) or is_integer(value))
    if fits:
        number = int(value) if is_integer(value) else float(value)  # type: ignore[call-overload]
        fits = is_integer(value) or math.isfinite(number)
        if fits and number >= low and (high is None or number <= high):
            return
    wanted = "" if fits else "a whole number, " if whole else "a number, "
    raise error(f"{name} is {brief(value)}, expected {wanted}{span}")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether a value counts something; True and False do not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def brief(value: object) -> str:
    """A value in a message, on one line, cut where it is long."""
    try:
        text = one_line(repr(value))
    except ValueError:  # Python writes no number of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST_BRIEF else text[:LONGEST_BRIEF] + " ..."


def is_unicode(text: str) -> bool:
    """Whether a text can be written: half a character of two (a lone surrogate) cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_span(start: object, end: object, whose: str) -> None:
    """Raise ``ValueError`` for a share of the schedule that is none, or ends before it starts."""
    check_number(start, f"{whose} start", 0, 1)
    check_number(end, f"{whose} end", 0, 1)
    if start > end:  # type: ignore[operator]
        raise ValueError(f"{whose} start is {start}, after its end {end}")


def refuse_not_finite(path: Path, name: str, values: Tensor) -> None:
    """Raise ``CheckpointError`` where values, of any shape, are NaN or infinite.

    A sum in float32 is NaN or infinite exactly where a member is, at one pass.
    """
    import torch  # numbers are checked before it is imported

    if not values.is_floating_point() or not values.numel():
        return
    wide = values if values.dtype.itemsize > 1 else values.to(torch.bfloat16)
    kind = torch.float64 if wide.dtype == torch.float64 else torch.float32
    if bool(wide.sum(dtype=kind).isfinite()):
        return
    bad = int((~wide.isfinite()).sum())
    if bad:
        raise CheckpointError(
            f"{path}: {name!r} holds {bad} values that are NaN or infinite, expected none"
        )
