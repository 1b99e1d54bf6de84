"""What people hand to the pipeline, looked at before anything is computed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from .bounds import MOST_SEED, brief, check_number
from .lora import Lora, LoraStack, LoraUse, match_lora
from .lora.match import is_whole, lora_report, refuse_unmatched
from .models.families import family_of
from .models.language_encoders import LanguageTextEncoders
from .models.text_encoders import TextEncoders
from .models.transformer import FluxTransformer
from .models.vae import AutoEncoder
from .offload import OffloadPolicy
from .sampling.conditioning import Conditioning, RegionalOptions
from .sampling.hires import Hires, outlined_second
from .sampling.image_prompts import ImagePrompt, apply_image_prompts, check_image_prompt
from .sampling.latents import zero_latents
from .sampling.prepared import check_condition_size
from .sampling.references import References
from .sampling.run import DrawRequest, SamplingSettings

log = logging.getLogger(__name__)


#: A LoRA as the pipeline takes one.
LoraChoice = Lora | str | Path | tuple[Lora | str | Path, float] | LoraUse


def as_device(device: torch.device | str | None) -> torch.device:
    """A device, the card where there is one by default; raises ``ValueError`` for none that is
    known, or that is not there."""
    try:
        known = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {brief(device)}, expected cpu, cuda or the like") from error
    if known.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ValueError("device is 'cuda', and torch sees no card: use cpu, or torch for CUDA")
        if (known.index or 0) >= count:
            raise ValueError(f"device is '{known}', and torch sees {count} cards, the first cuda:0")
    return known


def as_policy(policy: object) -> OffloadPolicy:
    """A policy, or that of a mode's word; raises ``ValueError`` for anything else."""
    if policy is None:
        return OffloadPolicy()
    if isinstance(policy, str):
        return OffloadPolicy(policy)
    if not isinstance(policy, OffloadPolicy):
        raise ValueError(f"policy is {brief(policy)}, expected an OffloadPolicy or its mode")
    return policy


def check_options(
    regional: object, regions: Sequence[object], hires: object, start: object, denoise: float
) -> None:
    """Raise ``ValueError`` for options of another type, or of what there is none of: of regions,
    and a ``denoise`` without a picture to ``start`` from."""
    if regional is not None and not isinstance(regional, RegionalOptions):
        raise ValueError(f"regional is {brief(regional)}, expected RegionalOptions")
    if regional is not None and not regions:
        raise ValueError("regional says how regions count, but there are none")
    if hires is not None and not isinstance(hires, Hires):
        raise ValueError(f"hires is {brief(hires)}, expected a Hires")
    if start is None and denoise < 1:
        raise ValueError(f"denoise is {denoise:g}, but there is no image to start from")


def batch_of(
    prompts: Sequence[object], batch_size: int, seed: object
) -> tuple[int, int | list[int]]:
    """Pictures that prompts, a batch size and seeds ask for, and the seed of all or of each; raises
    ``ValueError`` where they do not agree."""
    count = batch_of_prompts(prompts, batch_size)
    if not isinstance(seed, list | tuple | range):
        check_number(seed, "seed", 0, MOST_SEED, whole=True)
        return count, int(seed)  # type: ignore[call-overload]
    seeds = list(cast("Sequence[Any]", seed))
    if not seeds:
        raise ValueError("seed is an empty list, expected a number or one for each picture")
    for each in seeds:
        check_number(each, "seed", 0, MOST_SEED, whole=True)
    if count not in (1, len(seeds)):
        raise ValueError(f"{len(seeds)} seeds and {count} pictures: expected one seed, or as many")
    return len(seeds), [int(each) for each in seeds]


def batch_of_prompts(prompts: Sequence[object], batch_size: int) -> int:
    """Pictures that some prompts and a batch size ask for."""
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
    """A LoRA, opened where it is a file, with its strength, 1 where it stands alone; raises
    ``ValueError`` for anything else."""
    if isinstance(pair, Lora | str | Path):
        return LoraUse(pair)
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise ValueError(f"loras has {brief(pair)}, expected a file and its strength")
    lora, strength = cast("tuple[Any, Any]", pair)
    if not isinstance(lora, Lora | str | Path):
        raise ValueError(f"loras has {brief(lora)}, expected a LoRA or its file")
    return LoraUse(lora, strength)


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
    loras: Sequence[LoraChoice],
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
