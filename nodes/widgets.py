"""Inputs of nodes as the host wants them; every node builds its own from these.

A function gives what ``INPUT_TYPES`` holds for one input. What several nodes ask for in the same
words stands at the end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from flux_core.quant import COMPUTES

from . import host
from .wires import OFFLOAD_POLICY, PRECISION_PLAN

#: A seed that stays as it is from run to run.
STEADY = {"control_after_generate": False}
#: Shown only where a person asks for more.
ADVANCED = {"advanced": True}


def integer(default: int, low: int, high: int, tooltip: str, **more: Any) -> tuple:
    return ("INT", {"default": default, "min": low, "max": high, "tooltip": tooltip} | more)


def number(
    default: float, low: float, high: float, step: float, tooltip: str, **more: Any
) -> tuple:
    """A number that the page rounds to ``step``."""
    options = {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}
    return ("FLOAT", options | more)


def free_number(
    default: float, low: float, high: float, step: float, tooltip: str, **more: Any
) -> tuple:
    """A number that stays as it is typed; ``step`` is for the arrows alone."""
    return number(default, low, high, step, tooltip, round=False, **more)


def text(default: str, tooltip: str, **more: Any) -> tuple:
    return ("STRING", {"default": default, "tooltip": tooltip} | more)


def toggle(default: bool, tooltip: str, **more: Any) -> tuple:
    return ("BOOLEAN", {"default": default, "tooltip": tooltip} | more)


def choice(choices: Iterable[str], tooltip: str, **more: Any) -> tuple:
    return (list(choices), {"tooltip": tooltip} | more)


def model_file(
    folders: Sequence[str], tooltip: str, names: Iterable[str] | None = None, **more: Any
) -> tuple:
    """A file of some of the host's model folders, which ``folders`` among its options names."""
    names = host.model_names(*folders) if names is None else names
    return choice(names, tooltip, folders=list(folders), **more)


def socket(kind: str, tooltip: str, **more: Any) -> tuple:
    """An input that takes a wire."""
    return (kind, {"tooltip": tooltip} | more)


def compute_input() -> tuple:
    return choice(
        COMPUTES,
        "How layers of one byte multiply. native: on 8-bit matrix units, faster "
        "where the card has them. dequantize: widened first, the nearest to bf16. auto: native "
        "on a card that can.",
        default="auto",
    )


def compile_input() -> tuple:
    return toggle(
        False,
        "Compile the transformer's blocks with torch.compile: the first picture of "
        "a size takes a minute longer, later steps less. Needs Triton.",
        **ADVANCED,
    )


def plan_input() -> tuple:
    return socket(
        PRECISION_PLAN,
        "Decides the transformer's precision layer by layer, instead of the choice.",
    )


def policy_input(tooltip: str = "Where parts wait; without it, auto.") -> tuple:
    return socket(OFFLOAD_POLICY, tooltip)
