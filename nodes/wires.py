"""What our own wires carry, and the names of the wires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor
from typing_extensions import Required

from flux_core import Conditioning, Control, FluxTransformer, OffloadPolicy, TextEncoders
from flux_core.lora import LoraStack

from . import host

FLUX_MODEL = "FLUX_MODEL"
FLUX_TEXT_ENCODERS = "FLUX_TEXT_ENCODERS"
FLUX_CONTROL = "FLUX_CONTROL"
OFFLOAD_POLICY = "OFFLOAD_POLICY"
PRECISION_PLAN = "PRECISION_PLAN"
FLUX_DATASET = "FLUX_DATASET"
FLUX_TRAIN_SETTINGS = "FLUX_TRAIN_SETTINGS"
CATEGORY = "FluxFit"
TRAINING = f"{CATEGORY}/training"


class Latent(TypedDict, total=False):
    """The host's LATENT: raw latents (B, C, h, w), and what else it may carry.

    ``noise_mask`` is (B, 1, H, W) or (B, H, W), 1 where to draw. ``batch_index``: which picture of
    a larger batch each row is.
    """

    samples: Required[Tensor]
    noise_mask: Tensor
    batch_index: list[int]
    downscale_ratio_spacial: int


@dataclass(frozen=True)
class FluxModel:
    """A transformer and where it may live; cheap to copy, weights are shared."""

    transformer: FluxTransformer
    policy: OffloadPolicy
    preview: Tensor | None = None  # (17, 3): latent channels to RGB, the last row is the offset
    loras: LoraStack = ()


@dataclass(frozen=True)
class FluxTextEncoders:
    """Text encoders and where they may live."""

    encoders: TextEncoders
    policy: OffloadPolicy
    loras: LoraStack = ()


def conditioning_of(value: Sequence, name: str = "positive") -> Conditioning:
    """Read the host's CONDITIONING; raises ``ValueError`` where it is not FLUX's."""
    if not isinstance(value, list | tuple) or len(value) == 0:
        raise ValueError(f"{name} is {type(value).__name__}, expected CONDITIONING")
    if len(value) > 1:
        host.log.warning("%s has %d entries; the first is drawn", name, len(value))
    context, extra = value[0]
    pooled = extra.get("pooled_output")
    for key in ("control", "area", "mask", "reference_latents"):
        if extra.get(key) is not None:
            host.log.warning("%s carries %r, which FluxSampler does not read", name, key)
    return Conditioning(
        context,
        pooled,
        float(extra.get("guidance", 3.5)),
        extra.get("concat_latent_image"),
        extra.get("concat_mask"),
    )


def controls_of(value: Sequence[Control] | None) -> tuple[Control, ...]:
    return tuple(value or ())
