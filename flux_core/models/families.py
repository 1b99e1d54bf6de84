"""Model families: one record each, and no ``if`` of a family's name anywhere else.

A record (``family.Family``) says how a family's checkpoints are told and read (layouts), which of
the models of one layout it is (its configuration), the class of its transformer, how the host
spaces its sigmas, and what else it draws with. Most families here are FLUX.1's, which share two
layouts. A family with other key names brings

- a ``Layout`` for each spelling: a key that tells it, and its key map (``keymaps``);
- ``read_config``, and the class of its transformer where its layers are new;
- its sigma table, its encoders, its VAE;

and a line in ``FAMILIES``, in front of those that share its layouts and that it could be taken for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from torch import nn

from .chroma import (
    ChromaConfig,
    ChromaTransformer,
    diffusers_chroma,
    is_chroma_diffusers,
    is_chroma_native,
    native_chroma,
)
from .config import Shapes, TransformerConfig, VAEConfig
from .family import Family, Layout
from .flux2 import Flux2Config, Flux2Transformer
from .geometry import TokenGeometry
from .keymaps import diffusers_flux2, diffusers_transformer, native
from .transformer import FluxTransformer

#: A native and a diffusers key that every FLUX.1 transformer and ControlNet has.
NATIVE_QKV = "double_blocks.0.img_attn.qkv.weight"
DIFFUSERS_QKV = "transformer_blocks.0.attn.add_q_proj.weight"


def is_flux1_native(shapes: Shapes) -> bool:
    """Whether native blocks are FLUX.1's and not FLUX.2's or Chroma's."""
    return "vector_in.in_layer.weight" in shapes and "double_blocks.0.img_mod.lin.weight" in shapes


def is_flux1_diffusers(shapes: Shapes) -> bool:
    """Whether diffusers' blocks are FLUX.1's."""
    return (
        "time_text_embed.text_embedder.linear_1.weight" in shapes
        and "x_embedder.weight" in shapes
        and "transformer_blocks.0.norm1.linear.weight" in shapes
    )


def is_controlnet(shapes: Shapes) -> bool:
    return "controlnet_blocks.0.weight" in shapes


#: What every FLUX.2 transformer has, by its native name and by diffusers'.
FLUX2_NATIVE = "double_stream_modulation_img.lin.weight"
FLUX2_DIFFUSERS = "double_stream_modulation_img.linear.weight"

FLUX1_LAYOUTS = (
    Layout(
        "native",
        NATIVE_QKV,
        lambda shapes: is_flux1_native(shapes) and not is_controlnet(shapes),
        native,
    ),
    Layout(
        "diffusers",
        DIFFUSERS_QKV,
        lambda shapes: is_flux1_diffusers(shapes) and not is_controlnet(shapes),
        diffusers_transformer,
    ),
)

FLUX1_DEV = Family(
    name="FLUX.1-dev",
    members=("dev", "Krea", "Kontext", "Fill", "Canny", "Depth"),
    layouts=FLUX1_LAYOUTS,
    matches=lambda config: config.guidance_embed,
    transformer=FluxTransformer,
    sigma_shift=1.15,
    sigma_entries=10_000,
    published={"FLUX.1-dev": TransformerConfig()},
)
FLUX1_SCHNELL = replace(
    FLUX1_DEV,
    name="FLUX.1-schnell",
    members=("schnell",),
    matches=lambda config: not config.guidance_embed,
    sigma_shift=0.0,
    sigma_entries=1_000,
    steps=4,
    published={"FLUX.1-schnell": TransformerConfig(guidance_embed=False)},
)
#: Distilled to 8 double blocks; drawn as dev is.
FLUX1_LITE = replace(
    FLUX1_DEV,
    name="FLUX.1-lite",
    members=("FLUX.1 lite", "Flex.1", "Flex.2"),
    matches=lambda config: config.guidance_embed and config.depth == 8,
    published={
        "FLUX.1-lite": TransformerConfig(depth=8),
        "Flex.1": TransformerConfig(depth=8),
        "Flex.2": TransformerConfig(depth=8, in_channels=196),
    },
)
CHROMA = Family(
    name="Chroma",
    members=("Chroma1-Base", "Chroma1-HD", "Chroma1-Flash"),
    layouts=(
        Layout("Chroma native", NATIVE_QKV, is_chroma_native, native_chroma, "Chroma"),
        Layout("Chroma diffusers", DIFFUSERS_QKV, is_chroma_diffusers, diffusers_chroma, "Chroma"),
    ),
    matches=lambda config: isinstance(config, ChromaConfig),
    transformer=ChromaTransformer,
    sigma_shift=1.15,
    sigma_entries=10_000,
    read_config=ChromaConfig.from_shapes,
    encoders=("t5",),
    masks_padding=True,
    takes_controls=False,
    host_model="chroma",
    lora_base="chroma",
    cfg=4.0,
    published={"Chroma": ChromaConfig()},
)


def empirical_mu(tokens: int, steps: int) -> float:
    """FLUX.2's exponent for so many image tokens and steps: between two lines over the tokens, fit
    for 10 and for 200 steps; beyond 4300 tokens it is the latter's."""
    few, many = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return many
    slope = (many - few) / 190
    return slope * steps + (many - 200 * slope)


FLUX2_LAYOUTS = (
    Layout("FLUX.2 native", FLUX2_NATIVE, lambda shapes: NATIVE_QKV in shapes, native, "FLUX.2"),
    Layout(
        "FLUX.2 diffusers",
        FLUX2_DIFFUSERS,
        lambda shapes: DIFFUSERS_QKV in shapes,
        diffusers_flux2,
        "FLUX.2",
    ),
)
FLUX2_DEV = Family(
    name="FLUX.2-dev",
    members=("FLUX.2 dev",),
    layouts=FLUX2_LAYOUTS,
    matches=lambda config: isinstance(config, Flux2Config) and config.guidance_embed,
    transformer=Flux2Transformer,
    sigma_shift=2.02,
    sigma_entries=10_000,
    read_config=Flux2Config.from_shapes,
    encoders=("mistral",),
    # the VAE standardises them itself
    vae=VAEConfig(z_channels=32, scale_factor=1.0, shift_factor=0.0, patch=2, quant_conv=True),
    tokens=TokenGeometry(1, 4, 3, 10.0, "index"),
    resolution_shift=empirical_mu,
    context_length=512,
    takes_controls=False,
    host_model="flux2",
    lora_base="flux2",
    published={"FLUX.2-dev": Flux2Config()},
)
FLUX2_KLEIN = replace(
    FLUX2_DEV,
    name="FLUX.2-klein",
    members=("FLUX.2 klein 4B", "FLUX.2 klein 9B", "FLUX.2 klein base"),
    matches=lambda config: isinstance(config, Flux2Config) and not config.guidance_embed,
    encoders=("qwen3",),
    steps=4,
    published={
        "FLUX.2-klein-4B": Flux2Config(
            context_in_dim=7680,
            hidden_size=3072,
            depth=5,
            depth_single_blocks=20,
            guidance_embed=False,
        ),
        "FLUX.2-klein-9B": Flux2Config(
            context_in_dim=12_288,
            hidden_size=4096,
            depth=8,
            depth_single_blocks=24,
            guidance_embed=False,
        ),
    },
)

#: Where no model says which.
DEFAULT_FAMILY = FLUX1_DEV
#: The first that matches is taken.
FAMILIES = (FLUX2_DEV, FLUX2_KLEIN, CHROMA, FLUX1_LITE, FLUX1_SCHNELL, FLUX1_DEV)


def published_names() -> list[str]:
    """The models that people have, those of FLUX.1 first."""
    return [name for family in reversed(FAMILIES) for name in family.published]


def published_as(name: str) -> tuple[Family, Any]:
    """The family of a published model and its configuration; raises ``ValueError`` where there is
    none of that name."""
    for family in FAMILIES:
        if name in family.published:
            return family, family.published[name]
    raise ValueError(f"model is {name!r}, expected one of {', '.join(published_names())}")


def recognize(layout: str, shapes: Shapes) -> tuple[Family, Any]:
    """Of which family a transformer is, and its configuration.

    Args:
        layout: the name of the layout that its file has; only families with it are asked.
        shapes: the native shapes.

    Raises ``KeyError`` for a tensor that is missing, ``ValueError`` where no family matches.
    """
    for family in FAMILIES:
        if family.has_layout(layout):
            config = family.read_config(shapes)
            if family.matches(config):
                return family, config
    raise ValueError(f"no model family of the layout {layout!r} is like this")


def new_transformer(layout: str, shapes: Shapes) -> nn.Module:
    """The transformer that native shapes of a layout ask for; errors as ``recognize``."""
    family, config = recognize(layout, shapes)
    model = cast(Any, family.transformer(config))
    model.family = family
    return model


def family_of(transformer: nn.Module) -> Family:
    """The family that a transformer was opened as; of one made by hand, the first that matches.

    Raises ``ValueError`` where there is none.
    """
    model = cast(Any, transformer)
    if model.family is not None:
        return model.family
    for family in FAMILIES:
        if family.matches(model.config):
            return family
    raise ValueError(f"no model family has {model.config}")


def transformer_layouts() -> dict[str, Layout]:
    """All layouts of transformers by name; raises ``ValueError`` where two have one name."""
    layouts: dict[str, Layout] = {}
    for family in FAMILIES:
        for layout in family.layouts:
            if layouts.setdefault(layout.name, layout) is not layout:
                raise ValueError(f"{family.name} names a layout {layout.name!r}, as another does")
    return layouts
