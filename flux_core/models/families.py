"""Model families: one record each, and no ``if`` of a family's name anywhere else.

A record says how a family's checkpoints are told and read (layouts), which of the models of one
layout it is (its configuration), how the host spaces its sigmas, and what else it draws with. The
families here are FLUX.1's, which share two layouts. A family with other key names brings

- a ``Layout`` for each spelling: a key that tells it, and its key map (``keymaps``);
- ``read_config``, and the class of its transformer where its layers are new;
- its sigma table, its encoders, its VAE;

and a line in ``FAMILIES``, in front of those that it could be taken for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from .config import Shapes, TransformerConfig, VAEConfig
from .keymaps import Recipes, diffusers_transformer, native

#: A native and a diffusers key that every FLUX.1 transformer and ControlNet has.
NATIVE_QKV = "double_blocks.0.img_attn.qkv.weight"
DIFFUSERS_QKV = "transformer_blocks.0.attn.add_q_proj.weight"


@dataclass(frozen=True)
class Layout:
    """One spelling of a family's checkpoints; unlike ones have unlike names.

    ``key`` is there, under whatever prefix, and ``fits`` holds of the shapes beside it; ``key_map``
    gives the native tensors.
    """

    name: str
    key: str
    fits: Callable[[Shapes], bool]
    key_map: Callable[[Shapes], Recipes]


@dataclass(frozen=True)
class Family:
    """What FluxFit knows of a model family.

    ``members``: models that are this family to us. ``matches``: whether a configuration is its; it
    is asked of every transformer, and must not hold for those of other families. ``sigma_shift`` is
    the exponent mu with which the host shifts its sigmas and ``sigma_entries`` the length of the
    host's table. ``encoders``: what reads the prompt; ``needs_pooled``: whether it takes CLIP's
    pooled vector beside the context. ``vae``: channels and constants of its latents.
    """

    name: str
    members: tuple[str, ...]
    layouts: tuple[Layout, ...]
    matches: Callable[[TransformerConfig], bool]
    sigma_shift: float
    sigma_entries: int
    read_config: Callable[[Shapes], TransformerConfig] = TransformerConfig.from_shapes
    encoders: tuple[str, ...] = ("clip_l", "t5")
    needs_pooled: bool = True
    vae: VAEConfig = field(default_factory=VAEConfig)


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
)
#: Distilled to 8 double blocks; drawn as dev is.
FLUX1_LITE = replace(
    FLUX1_DEV,
    name="FLUX.1-lite",
    members=("FLUX.1 lite", "Flex.1"),
    matches=lambda config: config.guidance_embed and config.depth == 8,
)

#: The first that matches is taken.
FAMILIES = (FLUX1_LITE, FLUX1_SCHNELL, FLUX1_DEV)


def family_of(config: TransformerConfig) -> Family:
    """The family of a configuration; raises ``ValueError`` where there is none."""
    for family in FAMILIES:
        if family.matches(config):
            return family
    raise ValueError(f"no model family has {config}")


def config_from_shapes(shapes: Shapes) -> TransformerConfig:
    """A transformer's configuration from native shapes, as its family reads it.

    Raises ``KeyError`` on a missing key.
    """
    missing: KeyError | None = None
    for family in FAMILIES:
        try:
            config = family.read_config(shapes)
        except KeyError as error:  # another family may do without
            missing = missing or error
            continue
        if family.matches(config):
            return config
    raise missing or KeyError("no model family has these shapes")


def transformer_layouts(families: Sequence[Family] = FAMILIES) -> dict[str, Layout]:
    """All layouts of transformers by name; raises ``ValueError`` where two have one name."""
    layouts: dict[str, Layout] = {}
    for family in families:
        for layout in family.layouts:
            if layouts.setdefault(layout.name, layout) is not layout:
                raise ValueError(f"{family.name} names a layout {layout.name!r}, as another does")
    return layouts
