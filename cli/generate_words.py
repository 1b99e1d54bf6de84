"""What stands in single arguments of ``generate``: seeds, boxes, files with strengths.

Everything raises ``ValueError`` naming the option, or ``FileNotFoundError`` naming the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flux_core.bounds import MOST_SEED, check_number

from .generate_arguments import CONTROL
from .model_files import find_model, find_picture

#: How far above 1 a sum of two numbers as they are typed may come.
ROUNDING = 1e-6
#: Pictures that one command draws.
MOST_PICTURES = 100_000


def seeds_of(text: str, count: int | None) -> list[int]:
    """Seeds such as ``1,2,5..8``, or ``count`` from one on."""
    from ..batch.grid import values_of

    seeds = []
    for value in values_of(text, f"--seed {text!r}"):
        try:
            seed = int(str(value))
        except ValueError:
            raise ValueError(f"--seed {text!r}: {value!r} is no whole number") from None
        seeds.append(seed)
    if not seeds:
        raise ValueError(f"--seed {text!r}: expected one or more, as in 1,2,5..8")
    if count is not None:
        check_number(count, "--count", 1, MOST_PICTURES, whole=True)
        if len(seeds) > 1:
            raise ValueError(f"--count {count} and {len(seeds)} seeds: expected one of them")
        seeds = [seeds[0] + number for number in range(count)]
    for seed in seeds:
        check_number(seed, "seed", 0, MOST_SEED, whole=True)
    return seeds


def region_of(option: str) -> dict[str, Any]:
    """``X,Y,W,H: WORDS``, the box in shares of the picture."""
    box, colon, words = option.partition(":")
    try:
        left, top, width, height = (float(number) for number in box.split(","))
    except ValueError as error:
        raise ValueError(
            f"--region {option}: expected left, top, width and height, a colon, and words, as in "
            "0,0,0.5,1: a red circle"
        ) from error
    if not colon or not words.strip():
        raise ValueError(f"--region {option}: has no words behind its box")
    if not (0 <= left < left + width <= 1 + ROUNDING and 0 <= top < top + height <= 1 + ROUNDING):
        raise ValueError(
            f"--region {option}: the box is not inside of the picture: width and height are above "
            "0, and left and width together, and top and height, 1 at most"
        )
    right, bottom = min(1.0, left + width), min(1.0, top + height)
    return {"prompt": words.strip(), "box": [left, top, right, bottom]}


def lora_of(option: str) -> dict[str, Any]:
    """``FILE[=STRENGTH[@SCHEDULE]]``; the name of a file may have an equals sign in it."""
    name, equals, rest = option.rpartition("=")
    if not equals or Path(option).exists():
        return {"file": str(find_model(option, "lora", "--lora")), "strength": 1.0}
    number, at, schedule = rest.partition("@")
    strength = number_of(number, f"--lora {option}: strength")
    lora: dict[str, Any] = {"file": str(find_model(name, "lora", "--lora")), "strength": strength}
    return lora | ({"schedule": schedule} if at else {})


def number_of(text: str, what: str) -> float:
    """A number; raises ``ValueError`` saying what it is of."""
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{what} is {text!r}, not a number") from None
    check_number(number, what, -1000, 1000)
    return number


def with_picture(option: str, flag: str, kind: str) -> dict[str, Any]:
    """``MODEL=PICTURE[=STRENGTH[@START..END]]``; names of files may have equals signs in them.

    A ControlNet's name may have ``:MODE`` behind it.
    """
    parts = option.split("=")
    extra: dict[str, Any] = {}
    if len(parts) > 2 and not Path("=".join(parts[1:])).exists():
        number, at, span = parts.pop().partition("@")
        extra["strength"] = number_of(number, f"{flag} {option}: strength")
        if at:
            extra |= span_of(span, f"{flag} {option}")
    if len(parts) < 2 or not all(parts):
        raise ValueError(f"{flag} {option}: expected {CONTROL}")
    faults: list[FileNotFoundError] = []
    for split in range(1, len(parts)):
        name, picture = "=".join(parts[:split]), "=".join(parts[split:])
        model, mode = name_and_mode(name) if kind == "control" else (name, None)
        try:
            file = {"model": str(find_model(model, kind, flag))}
            file["picture"] = str(find_picture(picture, flag))
        except FileNotFoundError as fault:
            faults.append(fault)
            continue
        return file | extra | ({"mode": mode} if mode else {})
    raise faults[0]


def name_and_mode(name: str) -> tuple[str, str | None]:
    """``NET:MODE``; a name without a mode is as it is, whatever colons it has."""
    if Path(name).exists():
        return name, None
    model, colon, mode = name.rpartition(":")
    return (model, mode) if colon and mode.replace(" ", "").isalpha() and model else (name, None)


def span_of(text: str, what: str) -> dict[str, float]:
    """``START..END``, shares of the schedule."""
    start, dots, end = text.partition("..")
    if not dots:
        raise ValueError(f"{what}: {text!r} is no span such as 0..0.8")
    return {
        "start": number_of(start or "0", f"{what}: start"),
        "end": number_of(end or "1", f"{what}: end"),
    }
