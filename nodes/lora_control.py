"""The node that says where and when a LoRA counts."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from flux_core.lora import LoraRegion, LoraStack, LoraUse, lora_uses
from flux_core.lora.block_weights import PRESETS

from .widgets import ADVANCED, free_number, socket, text
from .wires import FLUX_MODEL, FLUX_TEXT_ENCODERS, LORAS, FluxModel, FluxTextEncoders


def changed_last(stack: LoraStack, last: LoraUse) -> LoraStack:
    """A stack whose last LoRA counts in another way."""
    return (*stack[:-1], last)


class FluxFitLoraControl:
    """Weights a block, a schedule and a region for the LoRA before it."""

    DESCRIPTION = (
        "Says where and when the LoRA of the loader before it counts: in which blocks of the "
        "model, at which steps, in which region of the picture. All of it multiplies the strength, "
        "and another text or mask changes numbers alone: nothing is loaded or compiled again."
    )
    CATEGORY = LORAS
    FUNCTION = "control"
    SEARCH_ALIASES = ["lora block weight", "lora schedule", "lora mask", "regional lora", "lbw"]
    RETURN_TYPES = (FLUX_MODEL, FLUX_TEXT_ENCODERS)
    RETURN_NAMES = ("model", "text_encoders")
    OUTPUT_TOOLTIPS = (
        "For FluxSampler, or the next LoRA.",
        "What was wired in, with the weights of blocks for text encoders.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": socket(
                    FLUX_MODEL, "From the FluxFitLoraLoader of the LoRA that is meant."
                ),
                "blocks": text(
                    "",
                    "Weights a block: double 0-9: 1, single: 0.5, outside: 0, else: 0; or a number "
                    f"a block, 57 for FLUX.1; or one of {', '.join(PRESETS)}. Empty: all count.",
                    multiline=True,
                ),
                "schedule": text(
                    "",
                    "What the strength is multiplied with over the steps: 0:1, 0.5:1, 0.8:0, from "
                    "0 (noise) to 1, joined by lines; step 0:1, 0.5:0 by steps. Empty: always 1.",
                ),
                "text_weight": free_number(
                    1.0, -10.0, 10.0, 0.05, "With a mask: what it counts at tokens of the text."
                ),
                "modulation_weight": free_number(
                    0.0,
                    -10.0,
                    10.0,
                    0.05,
                    "With a mask: what its modulation layers count, which change the whole "
                    "picture.",
                    **ADVANCED,
                ),
            },
            "optional": {
                "mask": socket("MASK", "Where in the picture it counts; without one everywhere."),
                "text_encoders": socket(
                    FLUX_TEXT_ENCODERS, "From the same loader, where blocks say text, clip_l or t5."
                ),
            },
        }

    def control(
        self,
        model: FluxModel,
        blocks: str,
        schedule: str,
        text_weight: float,
        modulation_weight: float,
        mask: Tensor | None = None,
        text_encoders: FluxTextEncoders | None = None,
    ):
        if not model.loras:
            raise ValueError("there is no LoRA on this model: wire it through FluxFitLoraLoader")
        last = lora_uses(model.loras)[-1]
        region = LoraRegion(mask, text_weight, modulation_weight) if mask is not None else None
        use = LoraUse(
            last.lora, last.strength, blocks.strip() or None, schedule.strip() or None, region
        )
        use.check(model.transformer)
        changed = replace(model, loras=changed_last(model.loras, use))
        if text_encoders is None:
            if use.blocks is not None and use.blocks.on_text:
                raise ValueError("blocks are for text encoders too: wire text_encoders through")
            return (changed, None)
        on_text = lora_uses(text_encoders.loras)
        if not on_text or on_text[-1].lora is not use.lora:
            raise ValueError(f"text_encoders are not from the loader of {use.lora.path}")
        texts = changed_last(text_encoders.loras, replace(on_text[-1], blocks=use.blocks))
        return (changed, replace(text_encoders, loras=texts))
