"""Prompts to what the transformer reads; the encoders reach the device only where they compute."""

from __future__ import annotations

from collections.abc import Sequence

from ..lora import LoraStack
from ..models.text_encoders import TextEncoders, TextEncoding
from ..offload import OffloadRunner
from ..offload.workload import t5_work
from .run import run_with_loras


def encode_prompts(
    runner: OffloadRunner,
    encoders: TextEncoders,
    prompts: Sequence[str],
    clip_l_prompt: str | None = None,
    t5_length: int | None = None,
    loras: LoraStack = (),
) -> list[TextEncoding]:
    """Encodings of prompts, on the CPU: context (1, N, D) and pooled (1, P) of each.

    Prompts are encoded one by one, so that one that is known has the bits of one that is not; the
    encoders are not touched for those known already.

    Args:
        clip_l_prompt: another text for CLIP-L alone.
        t5_length: tokens of context; None is what the tokenizer is made for.
    """
    settings = clip_l_prompt, t5_length, tuple(loras)
    encodings = {}
    missing = []
    for prompt in dict.fromkeys(prompts):
        encoding = encoders.cached(prompt, *settings)
        if encoding is None:
            missing.append(prompt)
        else:
            encodings[prompt] = encoding
    if missing:
        encodings |= run_with_loras(
            runner,
            loras,
            "text encoders",
            [encoders.clip_l, encoders.t5],
            lambda _: {prompt: encoders.encode_cached(prompt, *settings) for prompt in missing},
            t5_work(encoders.t5, t5_length or encoders.tokenizers.t5_length),
        )
    return [encodings[prompt] for prompt in prompts]
