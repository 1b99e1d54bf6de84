"""The models that a training run takes: opened from files, or the pocket model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..checkpoint.load import (
    load_language_encoders,
    load_text_encoders,
    load_transformer,
    load_vae,
)
from ..models.families import family_of
from ..models.family import Family
from ..models.language_encoders import LanguageTextEncoders
from ..models.text_encoders import TextEncoders
from ..models.transformer import FluxTransformer
from ..models.vae import AutoEncoder
from ..pocket import pocket_file
from ..quant import full_dtype
from .config import ConfigError, ModelConfig


@dataclass(frozen=True)
class TrainingModels:
    """The models that a run needs; the transformer is left as it was."""

    transformer: FluxTransformer
    encoders: TextEncoders | LanguageTextEncoders
    vae: AutoEncoder

    @classmethod
    def open(cls, config: ModelConfig, ram_budget: int | None = None) -> TrainingModels:
        """The models of some files, or the pocket model where none are named.

        ``ram_budget`` is in bytes. Raises ``ValueError`` for files of other models.
        """
        if not config.transformer:
            files = {
                "transformer": pocket_file("diffusion_models"),
                "clip_l": pocket_file("text_encoders", "_clip_l"),
                "t5": pocket_file("text_encoders", "_t5"),
                "vae": pocket_file("vae", "_vae"),
            }
            config = replace(config, **{name: str(path) for name, path in files.items()})
        transformer = load_transformer(
            config.transformer, precision=config.precision, ram_budget=ram_budget
        )
        encoders = open_encoders(config, family_of(transformer))
        vae = load_vae(config.vae, dtype=full_dtype(config.text_precision))
        return cls(transformer, encoders, vae)


def open_encoders(config: ModelConfig, family: Family) -> TextEncoders | LanguageTextEncoders:
    """What a family reads prompts with; raises ``ConfigError`` where none of it is named."""
    if "t5" not in family.encoders:
        # runs of before name it t5
        return load_language_encoders(
            config.language_model or config.t5,
            precision=config.text_precision,
            tokenizer=config.tokenizers or None,
        )
    if not config.t5:
        raise ConfigError(f"model.t5 is empty, and {family.name} reads T5")
    if family.needs_pooled and not config.clip_l:
        raise ConfigError(f"model.clip_l is empty, and {family.name} reads CLIP-L beside T5")
    return load_text_encoders(
        config.clip_l if family.needs_pooled else None,
        config.t5,
        precision=config.text_precision,
        tokenizers=config.tokenizers or None,
    )
