"""What a model family is to FluxFit: a record. The records themselves stand in ``families``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .config import Shapes, TransformerConfig, VAEConfig
from .geometry import FLUX1_TOKENS, TokenGeometry
from .keymaps import Recipes


@dataclass(frozen=True)
class Layout:
    """One spelling of a family's checkpoints; unlike ones have unlike names.

    ``key`` is there, under whatever prefix, and ``fits`` holds of the shapes beside it; ``key_map``
    gives the native tensors. ``model`` is what messages call that which is spelled so.
    """

    name: str
    key: str
    fits: Callable[[Shapes], bool]
    key_map: Callable[[Shapes], Recipes]
    model: str = "FLUX.1"


@dataclass(frozen=True)
class Family:
    """What FluxFit knows of a model family.

    Args:
        members: models that are this family to us.
        layouts: spellings of its checkpoints; families may share them.
        matches: whether a configuration is its, among the families that share a layout.
        transformer: makes its transformer from a configuration.
        sigma_shift: the exponent mu with which the host shifts its sigmas.
        resolution_shift: mu for so many image tokens and steps, as it was trained; None is as
            FLUX.1 was.
        sigma_entries: the length of the host's table of sigmas.
        read_config: the configuration from native shapes; raises ``KeyError`` on a missing key.
        encoders: the text encoders that its prompts need: ``clip_l`` and ``t5``, or a language
            model, ``qwen3`` or ``mistral``.
        masks_padding: its prompts end with one token of padding, of which T5's words know nothing;
            those of FLUX.1 are padded to a length, and the padding is read.
        vae: channels and constants of its latents.
        tokens: how its transformer reads them.
        context_length: text tokens that it reads at least; zeros stand in front of fewer.
        takes_controls: whether FLUX.1's ControlNets are made for it.
        host_model: what the host calls the family (``image_model``).
        lora_base: what files of LoRAs call it (``ss_base_model_version``).
        steps: how many a picture takes, as its models are published; distilled ones where there
            are such, whose base variants take more.
        cfg: true guidance that they are drawn with, where nobody says: above 1 for those that were
            not distilled.
        published: configurations of the models that people have by name, to be planned with.
    """

    name: str
    members: tuple[str, ...]
    layouts: tuple[Layout, ...]
    matches: Callable[[Any], bool]
    transformer: Callable[[Any], nn.Module]
    sigma_shift: float
    sigma_entries: int
    read_config: Callable[[Shapes], Any] = TransformerConfig.from_shapes
    encoders: tuple[str, ...] = ("clip_l", "t5")
    vae: VAEConfig = field(default_factory=VAEConfig)
    masks_padding: bool = False
    tokens: TokenGeometry = FLUX1_TOKENS
    resolution_shift: Callable[[int, int], float] | None = None
    context_length: int = 0
    takes_controls: bool = True
    host_model: str = "flux"
    lora_base: str = "flux1"
    steps: int = 28
    cfg: float = 1.0
    published: Mapping[str, Any] = field(default_factory=dict)

    @property
    def needs_pooled(self) -> bool:
        """Whether the transformer reads CLIP's pooled vector beside the context."""
        return "clip_l" in self.encoders

    def has_layout(self, name: str) -> bool:
        return any(layout.name == name for layout in self.layouts)
