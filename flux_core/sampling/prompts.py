"""Prompts to what the transformer reads; the encoders reach the device only where they compute."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..lora import LoraStack, lora_uses
from ..models.language import LanguageEncoder
from ..models.language_encoders import LanguageTextEncoders
from ..models.text_encoders import T5Encoder, TextEncoders, TextEncoding
from ..offload import OffloadRunner, Work
from ..offload.activations import on_meta, peak_bytes
from ..offload.workload import counted
from ..quant import set_compute
from ..record import note, read_from
from . import facts
from .run import run_with_loras


def t5_work(t5: T5Encoder | LanguageEncoder, text_tokens: int) -> Work:
    """Encoding one prompt of so many tokens by T5 or a language model; CLIP-L takes less."""

    def count() -> int:
        small = set_compute(on_meta(t5), "dequantize")
        return peak_bytes(
            lambda: small(torch.empty(1, text_tokens, dtype=torch.long, device="meta"))
        )

    return Work(counted(t5, text_tokens, count), image_tokens=0, text_tokens=text_tokens)


def encode_prompts(
    runner: OffloadRunner,
    encoders: TextEncoders | LanguageTextEncoders,
    prompts: Sequence[str],
    clip_l_prompt: str | None = None,
    t5_length: int | None = None,
    loras: LoraStack = (),
    literal: bool = False,
) -> list[TextEncoding]:
    """Encodings of prompts, on the CPU: context (1, N, D) and pooled (1, P), or None, of each.

    Prompts are encoded one by one, so that one that is known has the bits of one that is not; the
    encoders are not touched for those known already.

    Args:
        clip_l_prompt: another text for CLIP-L alone.
        t5_length: tokens of context, more for a longer prompt; None is what the tokenizer is made
            for.
        literal: brackets and names of embeddings are letters, and T5's tokens are cut as well, as
            training has it.
    """
    # what is for the transformer alone changes no text; a key holds no LoRA alive
    uses = [use for use in lora_uses(loras) if use.lora.on_text and use.strength]
    on_text = tuple((use.lora.serial, use.strength, use.blocks) for use in uses)
    settings = clip_l_prompt, t5_length, on_text, literal
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
            uses,
            "text encoders",
            encoders.modules_used,
            lambda _: {prompt: encoders.encode_cached(prompt, *settings) for prompt in missing},
            lambda: t5_work(
                encoders.context_encoder, encoders.tokens_at_once(missing, t5_length, literal)
            ),
        )
    models = [read for module in encoders.modules_used if (read := read_from(module)) is not None]
    note("encode", models=models, loras=facts.of_loras(uses))
    return [encodings[prompt] for prompt in prompts]
