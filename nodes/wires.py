"""What our own wires carry, and the names of the wires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from torch import Tensor
from typing_extensions import Required

from flux_core import (
    Control,
    FluxTransformer,
    LanguageTextEncoders,
    OffloadPolicy,
    TextEncoders,
    compile_blocks,
    set_compute,
)
from flux_core.lora import LoraStack
from flux_core.sampling.adapters import AppliedAdapter
from flux_core.sampling.conditioning import Conditioning
from flux_core.sampling.guidance import PLAIN_GUIDANCE, GuidanceOptions
from flux_core.sampling.references import JOINT
from flux_core.sampling.tiles import Tiling

FLUX_MODEL = "FLUX_MODEL"
FLUX_TEXT_ENCODERS = "FLUX_TEXT_ENCODERS"
FLUX_CONTROL = "FLUX_CONTROL"
FLUX_IP_ADAPTER = "FLUX_IP_ADAPTER"
OFFLOAD_POLICY = "OFFLOAD_POLICY"
PRECISION_PLAN = "PRECISION_PLAN"
FLUX_REGIONS = "FLUX_REGIONS"
FLUX_DATASET = "FLUX_DATASET"
FLUX_TRAIN_SETTINGS = "FLUX_TRAIN_SETTINGS"
FLUX_STITCH = "FLUX_STITCH"
FLUXFIT_TABLE = "FLUXFIT_TABLE"
COMPILER = "inductor"
CATEGORY = "FluxFit"
#: Nodes by what a person wants to do.
LOADING = f"{CATEGORY}/loading"
SAMPLING = f"{CATEGORY}/sampling"
CONTROLS = f"{CATEGORY}/controlnet"
LORAS = f"{CATEGORY}/lora"
IMAGE_PROMPTS = f"{CATEGORY}/image prompts"
MEMORY = f"{CATEGORY}/memory"
PRECISION = f"{CATEGORY}/precision"
PICTURES = f"{CATEGORY}/pictures"
INPAINTING = f"{CATEGORY}/inpainting"
TRAINING = f"{CATEGORY}/training"
BATCHES = f"{CATEGORY}/batch"


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
    """A transformer and where it may live; cheap to copy, weights are shared.

    ``compute`` and ``compiled`` are this wire's, and the shared ``module`` is set to them whenever
    ``transformer`` is asked for; None leaves them as they are. ``guidance_options`` is what
    FluxSampler does with the negative prompt, ``reference_attention`` what references attend to
    (``flux_core.sampling.references``), ``tiles`` and ``differential`` are those of the requests
    that it draws.
    """

    module: FluxTransformer
    policy: OffloadPolicy
    preview: Tensor | None = None  # (17, 3): latent channels to RGB, the last row is the offset
    loras: LoraStack = ()
    compute: str | None = None
    compiled: bool | None = None
    guidance_options: GuidanceOptions = PLAIN_GUIDANCE
    reference_attention: str = JOINT
    tiles: Tiling | None = None
    differential: float | None = None
    adapters: tuple[AppliedAdapter, ...] = ()

    @property
    def transformer(self) -> FluxTransformer:
        """The module as this wire wants it computed."""
        if self.compute is not None:
            set_compute(self.module, self.compute)
        if self.compiled is not None:
            compile_blocks(self.module, COMPILER if self.compiled else "")
        return self.module


@dataclass(frozen=True)
class FluxTextEncoders:
    """Text encoders and where they may live; ``compute`` as ``FluxModel`` has it."""

    module: TextEncoders | LanguageTextEncoders
    policy: OffloadPolicy
    loras: LoraStack = ()
    compute: str | None = None

    @property
    def encoders(self) -> TextEncoders | LanguageTextEncoders:
        """The module as this wire wants it computed."""
        if self.compute is not None:
            set_compute(self.module, self.compute)
        return self.module


@dataclass(frozen=True, eq=False)
class NamedRegion:
    """A prompt for a part of the picture, and what people call it; empty where it has no name."""

    name: str
    prompt: Conditioning


def controls_of(value: Sequence[Control] | None) -> tuple[Control, ...]:
    return tuple(value or ())
