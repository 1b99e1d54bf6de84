"""What a policy will do with the model that is wired to it, asked by the page while widgets turn.

The parts are built without numbers from their files' headers, once for a file and a precision, so
that an answer takes milliseconds. Nothing is measured here: a card may be drawing.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from flux_core import AutoEncoder, FluxTransformer
from flux_core.checkpoint.load import outline
from flux_core.models.families import family_of
from flux_core.models.text_encoders import ClipEncoder, T5Encoder
from flux_core.offload.devices import devices_of
from flux_core.offload.machine import known_machine
from flux_core.offload.memory import free_bytes
from flux_core.offload.plan import UNKNOWN
from flux_core.sampling.estimate import (
    PictureModels,
    PicturePlan,
    flux1_dev,
    models_like,
    plan_picture,
)
from flux_core.units import GB, readable_bytes, readable_seconds

from . import host
from .loaders import NO_FILE, PLACES, SAME_FILE
from .plan_options import counted_lines, options_of
from .policy import policy_of
from .weights import weights_key

#: What a card has where none is there to ask.
EXAMPLE = 8e9
#: Outlines that are kept; each is a few megabytes of Python objects.
KEPT = 8
DEFAULT_SIDE = 1024
_outlines: OrderedDict[Hashable, nn.Module] = OrderedDict()


def live_plan(question: Mapping[str, Any]) -> dict[str, Any]:
    """Answer the page.

    Args:
        question: ``policy``: widgets of OffloadPolicy; ``loader``: widgets of the loader that it
            is wired to, or nothing; ``width``, ``height``, ``batch`` and ``steps`` of the picture;
            ``nodes`` before a sampler, as ``plan_options`` has them.

    Returns:
        ``title`` and ``lines`` to show, and whether it ``fits``. Raises ``ValueError`` (or
        ``FileNotFoundError``) saying what is wrong with the question.
    """
    policy = policy_of(question.get("policy") or {})
    loader = question.get("loader") or {}
    models, name = models_of(loader)
    width, height, batch, steps = (
        whole(question, key, default)
        for key, default in (
            ("width", DEFAULT_SIDE),
            ("height", DEFAULT_SIDE),
            ("batch", 1),
            ("steps", 20),
        )
    )
    options = options_of(question, models.transformer, width, height)
    device = host.device()
    free, machine = free_bytes(device), known_machine(device)
    together = devices_of(policy.devices, device)
    example = policy.vram_budget or EXAMPLE
    planned = plan_picture(
        machine or UNKNOWN,
        vram=example if free is None else free,
        width=width,
        height=height,
        steps=steps,
        policy=policy,
        models=models,
        batch=batch,
        options=options,
        devices=len(together),
    )
    card = f"a card of {example / GB:g} GB"
    if free is not None:
        card = f"this card, {free / GB:.1f} GB free"
    title = f"{name}, {width}x{height}" + (f", {batch} pictures" if batch > 1 else "")
    lines = [*plan_lines(planned), *counted_lines(options), f"on {card}"]
    if len(together) > 1:
        lines.append(f"the first of {len(together)}: {', '.join(map(str, together))}")
    if machine is None:
        lines += [
            f"assumed: {UNKNOWN.link / GB:g} GB/s to the card, {UNKNOWN.flops / 1e12:g} TFLOP/s",
            "(nothing has run here yet)",
        ]
    else:
        speeds = f"{machine.link / GB:.0f} GB/s to the card, {machine.flops / 1e12:.0f} TFLOP/s"
        lines.append(f"measured: {speeds}")
    return {"title": title, "lines": lines, "fits": planned.fits}


def plan_lines(planned: PicturePlan) -> list[str]:
    """A plan in a few short lines."""
    if not planned.fits:
        return [f"does not fit: it needs {readable_bytes(planned.least)} at least"]
    drawing = planned.drawing.modules[0]
    stay = f"{len(drawing.resident)} of {drawing.blocks} blocks stay"
    lines = [
        f"{readable_bytes(planned.peak)} of the card at most",
        f"{stay}, {readable_bytes(drawing.streamed)} streamed a step" if drawing.streamed else stay,
        f"{readable_seconds(planned.step)} a step"
        + (
            f", {planned.drawing.slowdown:.0%} of it waiting"
            if planned.drawing.slowdown > 0.005
            else ""
        ),
    ]
    if planned.vae.tile:
        lines.append(f"VAE in tiles of {planned.pixels * planned.vae.tile} pixels")
    return lines


def whole(question: Mapping[str, Any], key: str, default: int) -> int:
    """A whole number above 0 of a question."""
    value = question.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 1:
        raise ValueError(f"{key} is {value!r}, expected a whole number above 0")
    return int(value)


def models_of(loader: Mapping[str, Any]) -> tuple[PictureModels, str]:
    """The parts that a loader's widgets name, and what to call them; FLUX.1-dev for the rest."""
    file = loader.get("transformer")
    if not file:
        return flux1_dev("fp8_scaled"), "FLUX.1-dev in fp8_scaled"
    path = host.model_path(str(file), *PLACES["transformer"])
    precision = str(loader.get("transformer_precision") or loader.get("precision") or "bf16")

    transformer = cast(FluxTransformer, outlined(path, "transformer", precision))
    usual = models_like(transformer, "fp8_scaled")

    def part(kind: str, default: nn.Module | None) -> nn.Module | None:
        name = loader.get(kind)
        if kind == "clip_l" and not family_of(transformer).needs_pooled:
            return None
        if not name or name == NO_FILE:
            return default
        own = path if name == SAME_FILE else host.model_path(str(name), *PLACES[kind])
        return outlined(own, kind, str(loader.get(f"{kind}_precision") or "bf16"))

    models = PictureModels(
        transformer,
        cast("ClipEncoder | None", part("clip_l", usual.clip_l)),
        cast(T5Encoder, part("t5", usual.t5)),
        cast(AutoEncoder, part("vae", usual.vae)),
    )
    return models, f"{Path(str(file)).stem} in {precision}"


def outlined(path: Path, kind: str, precision: str) -> nn.Module:
    """A part of a file on meta; the last ones are kept."""
    key = weights_key(kind, path, precision)
    if key not in _outlines:
        with torch.inference_mode(False):
            _outlines[key] = outline(path, kind, precision)
    _outlines.move_to_end(key)
    while len(_outlines) > KEPT:
        _outlines.popitem(last=False)
    return _outlines[key]
