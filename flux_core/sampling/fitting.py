"""A ControlNet's picture in the size of what is drawn, as the host scales it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .conditioning import Control
from .images import scaled_to


def fitting_control(control: Control, shape: Sequence[int], side: int) -> Control:
    """A control whose condition fits latents of a shape (B, C, h, w), each ``side`` pixels wide;
    the same one where it does already, or where there is no picture to make it of."""
    picture, encode = control.picture, control.encode
    if control.cond.shape[-2:] == tuple(shape[-2:]) or picture is None or encode is None:
        return control
    size = (side * shape[-2], side * shape[-1])
    return replace(control, cond=encode(scaled_to(picture, *size)))
