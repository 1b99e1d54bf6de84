"""Which parts of FLUX.1 a file holds, told from its keys and shapes, or which other model it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..models.config import Shapes
from ..models.families import (
    DIFFUSERS_QKV,
    NATIVE_QKV,
    is_controlnet,
    is_flux1_diffusers,
    transformer_layouts,
)
from ..models.keymaps import KEYMAPS, Recipes
from .errors import CheckpointError
from .source import Source

CLIP_EMBEDDING = "text_model.embeddings.token_embedding.weight"
T5_QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"


@dataclass(frozen=True)
class Part:
    """One component: ``kind`` and ``layout``, and the prefix under which its keys lie."""

    kind: str
    layout: str
    prefix: str = ""

    def __str__(self) -> str:
        under = f" under {self.prefix!r}" if self.prefix else ""
        return f"{self.kind} ({self.layout} layout{under})"

    @property
    def title(self) -> str:
        """What it is, in words."""
        if self.kind == "transformer":
            return f"a {transformer_layouts()[self.layout].model} transformer"
        return NAMES[self.kind]

    def key_map(self, shapes: Shapes) -> Recipes:
        """How the native tensors are made of the file's, for its shapes below the prefix."""
        if self.kind == "transformer":
            return transformer_layouts()[self.layout].key_map(shapes)
        return KEYMAPS[self.kind, self.layout](shapes)


@dataclass(frozen=True)
class Rule:
    """A part is there if ``key`` is, under a prefix, and ``also`` holds of the shapes there."""

    kind: str
    layout: str
    key: str
    prefixes: tuple[str, ...]
    also: Callable[[Shapes], bool] = lambda shapes: True


def latent_channels(shapes: Shapes) -> int:
    return shapes.get("decoder.conv_in.weight", (0, 0))[1]


def clip_width(shapes: Shapes) -> int:
    return shapes[CLIP_EMBEDDING][1]


MODEL_PREFIXES = ("", "model.diffusion_model.", "diffusion_model.")
CLIP_G_WIDTH = 1280
#: Of all parts but transformers, whose families have theirs.
RULES = (
    Rule("controlnet", "native", NATIVE_QKV, MODEL_PREFIXES, is_controlnet),
    Rule(
        "controlnet",
        "diffusers",
        DIFFUSERS_QKV,
        MODEL_PREFIXES,
        lambda s: is_controlnet(s) and is_flux1_diffusers(s),
    ),
    Rule(
        "vae",
        "native",
        "decoder.mid.block_1.conv1.weight",
        ("", "vae.", "first_stage_model."),
        lambda s: latent_channels(s) == 16,
    ),
    Rule(
        "vae",
        "diffusers",
        "decoder.mid_block.resnets.0.conv1.weight",
        ("", "vae."),
        lambda s: latent_channels(s) == 16,
    ),
    Rule(
        "clip_l",
        "native",
        CLIP_EMBEDDING,
        ("", "transformer.", "clip_l.transformer.", "text_encoders.clip_l.transformer.", "clip_l."),
        lambda s: clip_width(s) != CLIP_G_WIDTH,
    ),
    Rule(
        "t5",
        "native",
        T5_QUERY,
        ("", "transformer.", "t5xxl.transformer.", "text_encoders.t5xxl.transformer.", "t5xxl."),
        lambda s: "shared.weight" in s or "encoder.embed_tokens.weight" in s,
    ),
)

#: What other models look like: a key that the name contains, and what it then is.
STRANGERS = (
    ("conditioner.embedders.1.", "an SDXL checkpoint"),
    ("double_stream_modulation_img.", "a FLUX.2 transformer"),
    ("distilled_guidance_layer.", "a Chroma transformer"),
    ("joint_blocks.0.", "a Stable Diffusion 3 transformer"),
    ("pos_embed.proj.", "a Stable Diffusion 3 model in diffusers layout"),
    ("input_blocks.7.1.transformer_blocks.9.", "an SDXL UNet"),
    ("model.diffusion_model.input_blocks.", "a Stable Diffusion 1 or 2 checkpoint"),
    ("input_blocks.0.0.", "a Stable Diffusion UNet or ControlNet"),
    ("add_embedding.linear_1.", "an SDXL UNet in diffusers layout"),
    ("down_blocks.0.resnets.", "a Stable Diffusion UNet in diffusers layout"),
    ("lora_", "a LoRA"),
    (".lora_A.", "a LoRA"),
    (".lora.", "a LoRA"),
    ("transformer.resblocks.", "an OpenCLIP text encoder (CLIP-G or CLIP-H)"),
    ("model.layers.0.self_attn.", "a language model"),
)


def find_parts(source: Source) -> list[Part]:
    """Every part that the file holds, at most one of a kind."""
    shapes = source.shapes
    parts: dict[str, Part] = {}
    transformers = (
        Rule("transformer", layout.name, layout.key, MODEL_PREFIXES, layout.fits)
        for layout in transformer_layouts().values()
    )
    for rule in (*transformers, *RULES):
        for prefix in rule.prefixes:
            if prefix + rule.key in shapes and rule.kind not in parts:
                inner = source.under(prefix).shapes
                if rule.also(inner):
                    parts[rule.kind] = Part(rule.kind, rule.layout, prefix)
    return list(parts.values())


def find_part(source: Source, kind: str) -> Part:
    """The part of one kind; raises ``CheckpointError`` saying what the file is instead."""
    parts = find_parts(source)
    for part in parts:
        if part.kind == kind:
            return part
    raise CheckpointError(f"{source.path}: expected {NAMES[kind]}, found {describe(source, parts)}")


NAMES = {
    "transformer": "a FLUX.1 transformer",
    "controlnet": "a FLUX.1 ControlNet",
    "vae": "a FLUX.1 VAE (16 latent channels)",
    "clip_l": "a CLIP-L text encoder",
    "t5": "a T5 encoder",
}


def describe(source: Source, parts: list[Part]) -> str:
    """What a file holds, in words, for an error message."""
    if parts:
        return " and ".join(part.title for part in parts)
    shapes = source.shapes
    for mark, family in STRANGERS:
        if any(mark in name for name in shapes):
            return family
    for prefix in ("", "vae.", "first_stage_model."):
        shape = shapes.get(f"{prefix}decoder.conv_in.weight")
        if shape is not None:
            return f"a VAE with {shape[1]} latent channels"
    for name, shape in shapes.items():
        if name.endswith(CLIP_EMBEDDING):
            kind = "CLIP-G" if shape[1] == CLIP_G_WIDTH else "a CLIP text encoder"
            return f"{kind} (width {shape[1]})"
    names = ", ".join(list(shapes)[:3]) or "no tensors at all"
    return f"no known model (its first keys: {names})"
