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
from .config import Shapes, TransformerConfig
from .family import Family, Layout
from .keymaps import diffusers_transformer, native
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
)
FLUX1_SCHNELL = replace(
    FLUX1_DEV,
    name="FLUX.1-schnell",
    members=("schnell",),
    matches=lambda config: not config.guidance_embed,
    sigma_shift=0.0,
    sigma_entries=1_000,
    published=TransformerConfig(guidance_embed=False),
)
#: Distilled to 8 double blocks; drawn as dev is.
FLUX1_LITE = replace(
    FLUX1_DEV,
    name="FLUX.1-lite",
    members=("FLUX.1 lite", "Flex.1", "Flex.2"),
    matches=lambda config: config.guidance_embed and config.depth == 8,
    published=TransformerConfig(depth=8),
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
    host_name="chroma",
    published=ChromaConfig(),
)

#: The first that matches is taken.
FAMILIES = (CHROMA, FLUX1_LITE, FLUX1_SCHNELL, FLUX1_DEV)


def family_named(name: str) -> Family:
    """The family of a name; raises ``ValueError`` where there is none."""
    for family in FAMILIES:
        if family.name == name:
            return family
    names = ", ".join(family.name for family in FAMILIES)
    raise ValueError(f"model is {name!r}, expected one of {names}")


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
