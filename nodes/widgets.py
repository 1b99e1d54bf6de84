"""Inputs of nodes as the host wants them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: A seed that stays as it is from run to run.
STEADY = {"control_after_generate": False}
#: Shown only where a person asks for more.
ADVANCED = {"advanced": True}


def whole(default: int, low: int, high: int, tooltip: str, **more: Any) -> tuple:
    return ("INT", {"default": default, "min": low, "max": high, "tooltip": tooltip} | more)


def number(
    default: float, low: float, high: float, step: float, tooltip: str, **more: Any
) -> tuple:
    options = {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}
    return ("FLOAT", options | {"round": False} | more)


def words(default: str, tooltip: str, **more: Any) -> tuple:
    return ("STRING", {"default": default, "tooltip": tooltip} | more)


def one_of(choices: Iterable[str], tooltip: str, **more: Any) -> tuple:
    return (list(choices), {"tooltip": tooltip} | more)
