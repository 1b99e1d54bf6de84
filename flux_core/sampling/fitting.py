"""A ControlNet's picture: what it may be, and in the size of what is drawn, as the host has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..bounds import brief, check_number, check_span
from ..models.config import VAEConfig
from ..models.controlnet import FluxControlNet
from .conditioning import Control
from .images import scaled_to


def check_control(control: Control) -> None:
    """Raise ``ValueError`` for what is no ControlNet's, and for its numbers out of range."""
    if not isinstance(control, Control):
        raise ValueError(f"controls has {brief(control)}, expected a Control")
    check_number(control.strength, "a ControlNet's strength", -1000, 1000)
    check_span(control.start, control.end, "a ControlNet's")
    if not isinstance(control.net, FluxControlNet):
        raise ValueError(f"a Control has {brief(control.net)}, expected a FLUX.1 ControlNet")
    if control.mask is not None and not control.net.wants_mask:
        raise ValueError("a mask is read by ControlNets for inpainting, and this one is none")


def check_condition(control: Control) -> None:
    """``check_control``, and for a condition of another shape than the net reads."""
    check_control(control)
    hint, shape = control.net.config.hint, tuple(control.cond.shape)
    channels = 3 if hint else VAEConfig().latent_channels
    if len(shape) != 4 or shape[1] != channels:
        what = "pixels (B, 3, H, W)" if hint else f"raw VAE latents (B, {channels}, h, w)"
        raise ValueError(
            f"a Control has cond of the shape {shape}, its net reads {what}: FluxPipeline.control "
            "makes it of a picture"
        )


def fitting_control(control: Control, shape: Sequence[int], side: int) -> Control:
    """A control whose condition fits latents of a shape (B, C, h, w), each ``side`` pixels wide;
    the same one where it does already, or where there is no picture to make it of."""
    picture, encode = control.picture, control.encode
    if control.cond.shape[-2:] == tuple(shape[-2:]) or picture is None or encode is None:
        return control
    size = (side * shape[-2], side * shape[-1])
    return replace(control, cond=encode(scaled_to(picture, *size)))
