"""The prompts that the pipeline is given, as conditioning: what to draw, what to avoid, and what to
draw in parts of the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .lora import LoraStack
from .models.language_encoders import LanguageTextEncoders
from .models.text_encoders import TextEncoders
from .models.text_encoding import joined
from .offload import OffloadRunner
from .sampling.conditioning import Conditioning, RegionalOptions, RegionalPrompts
from .sampling.prompts import encode_prompts
from .sampling.regional import RegionPrompt
from .sampling.settings import SamplingSettings

#: The prompt, and the negative one where it is read.
ReadPrompts = tuple[Conditioning, Conditioning | None]


def read_prompts(
    runner: OffloadRunner,
    encoders: TextEncoders | LanguageTextEncoders,
    prompts: Sequence[str],
    negative_prompt: str,
    settings: SamplingSettings,
    guidance: float,
    loras: LoraStack,
) -> ReadPrompts:
    """Prompts in one batch, and the negative one where the settings read it."""
    length = encoders.context_length(prompts)  # they stand in one batch
    texts = joined(encode_prompts(runner, encoders, prompts, t5_length=length, loras=loras))
    positive = Conditioning(texts.context, texts.pooled, guidance, text_mask=texts.mask)
    if settings.cfg == 1.0 and settings.guidance_options.nag is None:
        return positive, None
    (other,) = encode_prompts(runner, encoders, [negative_prompt], loras=loras)
    return positive, Conditioning(other.context, other.pooled, guidance)


def with_regions(
    runner: OffloadRunner,
    encoders: TextEncoders | LanguageTextEncoders,
    prompt: Conditioning,
    regions: Sequence[RegionPrompt],
    options: RegionalOptions | None,
    loras: LoraStack,
) -> Conditioning:
    """A prompt with regions, whose texts are encoded."""
    encodings = encode_prompts(runner, encoders, [r.prompt for r in regions], loras=loras)
    prompts = tuple(
        Conditioning(
            encoding.context, encoding.pooled, region=region.place, text_mask=encoding.mask
        )
        for encoding, region in zip(encodings, regions, strict=True)
    )
    return replace(prompt, regional=RegionalPrompts(prompts, options or RegionalOptions()))
