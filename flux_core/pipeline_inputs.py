"""What people hand to the pipeline, looked at before anything is computed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from .bounds import brief, check_number
from .lora import Lora, LoraStack, LoraUse, load_lora, match_lora
from .lora.match import is_whole, lora_report, refuse_unmatched
from .models.families import family_of
from .models.language_encoders import LanguageTextEncoders
from .models.text_encoders import TextEncoders
from .models.transformer import FluxTransformer
from .models.vae import AutoEncoder
from .sampling.conditioning import Conditioning
from .sampling.hires import Hires, outlined_second
from .sampling.image_prompts import ImagePrompt, apply_image_prompts, check_image_prompt
from .sampling.latents import zero_latents
from .sampling.prepared import check_condition_size
from .sampling.references import References
from .sampling.run import DrawRequest, SamplingSettings

log = logging.getLogger(__name__)


def batch_of(prompts: Sequence[object], batch_size: int) -> int:
    """Pictures that some prompts and a batch size ask for; raises ``ValueError`` where the two do
    not agree."""
    if not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompt is {brief(prompts)}, expected a text or one for each picture")
    check_number(batch_size, "batch_size", 1, whole=True)
    if len(prompts) > 1 and batch_size not in (1, len(prompts)):
        raise ValueError(
            f"{len(prompts)} prompts and a batch_size of {batch_size}: expected one prompt, or as "
            "many as pictures"
        )
    return max(batch_size, len(prompts))


def listed(value: object, name: str) -> list[Any]:
    """Several of something, none where it is None; raises ``ValueError`` for anything else."""
    if value is not None and not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {brief(value)}, expected a list")
    return list(cast("Sequence[Any]", value or ()))


def use_of(pair: object) -> LoraUse:
    """A LoRA, opened where it is a file, with its strength; raises ``ValueError`` for anything
    else."""
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError(f"loras has {brief(pair)}, expected a file and its strength")
    lora, strength = cast("tuple[Any, Any]", pair)
    if not isinstance(lora, Lora | str | Path):
        raise ValueError(f"loras has {brief(lora)}, expected a LoRA or its file")
    return LoraUse(lora if isinstance(lora, Lora) else load_lora(lora), strength)


def refuse_strangers(
    transformer: FluxTransformer,
    text_encoders: TextEncoders | LanguageTextEncoders,
    vae: AutoEncoder,
) -> None:
    """Raise ``ValueError`` for parts that another family draws with."""
    family, latents = family_of(transformer), vae.config.latent_channels
    if latents != family.vae.latent_channels:
        raise ValueError(
            f"the VAE has latents of {latents} channels, {family.name} takes "
            f"{family.vae.latent_channels}: they do not belong together"
        )
    theirs = getattr(text_encoders, "kind", None)
    name = "clip_l" if theirs is None else theirs.name
    if name not in family.encoders and (theirs is not None or "t5" not in family.encoders):
        raise ValueError(
            f"{family.name} reads prompts by {' and '.join(family.encoders)}, and these text "
            f"encoders are {'CLIP-L and T5' if theirs is None else theirs.title}"
        )


def opened_loras(
    loras: Sequence[tuple[Lora | str | Path, float] | LoraUse],
    transformer: FluxTransformer,
    text_encoders: TextEncoders | LanguageTextEncoders,
) -> LoraStack:
    """LoRAs, opened where they are files; raises where nothing of one fits."""
    opened = []
    for item in loras:
        use = item if isinstance(item, LoraUse) else use_of(item)
        use.check(transformer)
        lora = use.lora
        parts = (transformer, *text_encoders.modules_used)
        matches = [match_lora(lora, part) for part in parts]
        refuse_unmatched(lora, matches)
        if not is_whole(matches):
            log.warning("%s", lora_report(lora, matches))
        opened.append(use)
    return opened


def check_request(
    transformer: FluxTransformer,
    settings: SamplingSettings,
    references: References | None,
    image_prompts: Sequence[ImagePrompt],
    hires: Hires | None,
    batch: int,
    height: int,
    width: int,
    **options: Any,
) -> None:
    """Raise ``ValueError`` for what a ``DrawRequest`` refuses whatever the words are, before they
    are encoded; ``options`` are its further arguments."""
    for each in image_prompts:
        check_image_prompt(each)
    family, config = family_of(transformer), transformer.config
    blank = Conditioning(
        torch.zeros(1, 1, config.context_in_dim),
        torch.zeros(1, config.vec_in_dim) if family.needs_pooled else None,
        references=references,
    )
    positive, adapters = apply_image_prompts(None, image_prompts, blank)
    latents = zero_latents(family.vae, batch, height, width)
    request = DrawRequest(
        transformer, positive, latents, settings, negative=blank, adapters=adapters, **options
    )
    for each in (request, *([] if hires is None else [outlined_second(request, hires)])):
        settings.guidance_options.zero_sigma(each.noise_schedule.sigmas)
        for control in each.controls:
            if not control.scales:
                check_condition_size(control, each.latents.shape, family.vae)
