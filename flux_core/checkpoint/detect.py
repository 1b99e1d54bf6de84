"""Which parts of FLUX.1 a file holds, told from its keys and shapes, or which other model it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import CheckpointError
from ..models.config import Shapes
from ..models.families import (
    DIFFUSERS_QKV,
    NATIVE_QKV,
    is_controlnet,
    is_flux1_diffusers,
    transformer_layouts,
)
from ..models.keymaps import KEYMAPS, Recipes
from ..models.language import FIRST_QUERY, kind_of
from .foreign import INSTEAD, is_multilingual_t5, packed_as, stranger
from .source import Source

CLIP_EMBEDDING = "text_model.embeddings.token_embedding.weight"
FLAT_CLIP_EMBEDDING = "embeddings.token_embedding.weight"
OPENAI_CLIP_EMBEDDING = "token_embedding.weight"
OPENAI_CLIP_LAYER = "transformer.resblocks.0.ln_1.weight"
PATCHES = "embeddings.patch_embedding.weight"
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


def is_vae(shapes: Shapes) -> bool:
    """Whether an autoencoder is FLUX.1's or FLUX.2's, by the channels of its latents."""
    channels = (*shapes.get("decoder.conv_in.weight", ()), 0, 0)[1]
    return channels == (32 if "bn.running_mean" in shapes else 16)


def is_clip_l(embedding: str) -> Callable[[Shapes], bool]:
    """Whether an embedding of that name is of CLIP-L's width, and not of CLIP-G's."""
    return lambda shapes: shapes[embedding][-1] != CLIP_G_WIDTH


MODEL_PREFIXES = (
    "",
    "model.diffusion_model.",
    "diffusion_model.",
    "model.",
    "transformer.",
    "dit.",
    "pipe.dit.",
    "net.",
    "module.",
    "_orig_mod.",
)
CLIP_PREFIXES = (
    "",
    "transformer.",
    "text_encoder.",
    "clip_l.transformer.",
    "text_encoders.clip_l.transformer.",
    "text_encoders.clip_l.",
    "clip_l.",
    "cond_stage_model.transformer.",
    "conditioner.embedders.0.transformer.",
)
T5_PREFIXES = (
    "",
    "transformer.",
    "text_encoder_2.",
    "t5xxl.transformer.",
    "text_encoders.t5xxl.transformer.",
    "text_encoders.t5xxl.",
    "t5xxl.",
)
VISION_PREFIXES = ("", "image_encoder.", "clip_vision.")
LANGUAGE_PREFIXES = (
    "",
    "model.",
    "language_model.model.",
    "model.language_model.",
    *(
        f"text_encoders.{name}.transformer.model."
        for name in ("qwen3_4b", "qwen3_8b", "mistral3_24b")
    ),
    "text_encoder.model.",
)
CLIP_G_WIDTH = 1280


def is_vision(shapes: Shapes) -> bool:
    """Whether patches are of pictures, which some newer encoders' are not, and layers are CLIP's or
    SigLIP's."""
    inner = "vision_model." if f"vision_model.{PATCHES}" in shapes else ""
    layer = f"{inner}encoder.layers.0.self_attn.q_proj.weight"
    return len(shapes[inner + PATCHES]) == 4 and layer in shapes


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
        is_vae,
    ),
    Rule(
        "vae",
        "diffusers",
        "decoder.mid_block.resnets.0.conv1.weight",
        ("", "vae.", "first_stage_model."),
        is_vae,
    ),
    Rule("clip_l", "native", CLIP_EMBEDDING, CLIP_PREFIXES, is_clip_l(CLIP_EMBEDDING)),
    Rule(
        "clip_l",
        "transformers 5",
        FLAT_CLIP_EMBEDDING,
        CLIP_PREFIXES,
        lambda s: is_clip_l(FLAT_CLIP_EMBEDDING)(s) and "encoder.layers.0.mlp.fc1.weight" in s,
    ),
    Rule(
        "clip_l",
        "openai",
        OPENAI_CLIP_EMBEDDING,
        ("", "clip_l.", "cond_stage_model.model.", "model."),
        lambda s: is_clip_l(OPENAI_CLIP_EMBEDDING)(s) and OPENAI_CLIP_LAYER in s,
    ),
    Rule(
        "t5",
        "native",
        T5_QUERY,
        T5_PREFIXES,
        lambda s: (
            ("shared.weight" in s or "encoder.embed_tokens.weight" in s)
            and not is_multilingual_t5(s)
        ),
    ),
    Rule(
        "t5",
        "stack",
        T5_QUERY.removeprefix("encoder."),
        (*T5_PREFIXES, "encoder."),
        lambda s: "embed_tokens.weight" in s and not is_multilingual_t5(s),
    ),
    Rule(
        "style_model",
        "native",
        "redux_up.weight",
        ("", "image_embedder."),
        lambda s: "redux_down.weight" in s,
    ),
    Rule("clip_vision", "native", f"vision_model.{PATCHES}", VISION_PREFIXES, is_vision),
    Rule("clip_vision", "transformers 5", PATCHES, VISION_PREFIXES, is_vision),
    Rule(
        "ip_adapter",
        "XLabs",
        "ip_adapter_proj_model.norm.weight",
        ("",),
        lambda s: any("ip_adapter_double_stream_k_proj" in name for name in s),
    ),
    Rule(
        "ip_adapter",
        "diffusers",
        "image_proj.norm.weight",
        ("",),
        lambda s: any(name.startswith("ip_adapter.") and ".to_k_ip." in name for name in s),
    ),
    Rule(
        "language_model",
        "native",
        FIRST_QUERY,
        LANGUAGE_PREFIXES,
        lambda s: kind_of(s) is not None,
    ),
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


def refuse_packed(source: Source, part: Part) -> None:
    """Raise ``CheckpointError`` where a part's weights are packed another way."""
    packed = packed_as(source.entries)
    if packed is not None:
        raise CheckpointError(
            f"{source.path}: {part} is packed as {packed}, which FluxFit does not read: {INSTEAD}"
        )


NAMES = {
    "transformer": "a FLUX.1 transformer",
    "controlnet": "a FLUX.1 ControlNet",
    "vae": "a FLUX.1 VAE (16 latent channels) or FLUX.2's (32, and their statistics)",
    "clip_l": "a CLIP-L text encoder",
    "t5": "a T5 encoder",
    "style_model": "a FLUX.1 Redux model",
    "clip_vision": "a vision encoder",
    "ip_adapter": "an IP-Adapter",
    "language_model": "a language model that FLUX.2 reads (Qwen3 or Mistral Small)",
}


def describe(source: Source, parts: list[Part]) -> str:
    """What a file holds, in words, for an error message."""
    if parts:
        return " and ".join(part.title for part in parts)
    shapes = source.shapes
    other = stranger(shapes)
    if other is not None:
        return other
    packed = packed_as(source.entries)
    if packed is not None:
        return f"weights packed as {packed}, which FluxFit does not read: {INSTEAD}"
    for prefix in ("", "vae.", "first_stage_model."):
        shape = shapes.get(f"{prefix}decoder.conv_in.weight")
        if shape is not None and len(shape) > 1:
            return f"a VAE with {shape[1]} latent channels"
    for name, shape in shapes.items():
        if name.endswith(OPENAI_CLIP_EMBEDDING):
            kind = "CLIP-G" if shape[-1:] == (CLIP_G_WIDTH,) else "a CLIP text encoder"
            return f"{kind} (width {shape[-1] if shape else 0})"
    names = ", ".join(map(repr, list(shapes)[:3])) or "no tensors at all"
    return f"no known model (its first keys: {names})"
