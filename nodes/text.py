"""The node that turns a prompt into CONDITIONING."""

from __future__ import annotations

from flux_core.sampling.prompts import encode_prompts

from . import host
from .memory_manager import HostOffloadRunner
from .wires import CATEGORY, FLUX_TEXT_ENCODERS, FluxTextEncoders


class FluxTextEncode:
    """A prompt for FLUX.1."""

    DESCRIPTION = (
        "Encodes a prompt with CLIP-L and T5. The result is the host's CONDITIONING and also fits "
        "stock nodes. Long prompts are cut at what the encoders read, with a warning."
    )
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    SEARCH_ALIASES = ["prompt", "flux prompt", "text encode"]
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_TOOLTIPS = ("T5 context, pooled CLIP vector and guidance.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "text_encoders": (FLUX_TEXT_ENCODERS, {"tooltip": "From FluxLoaderFP8."}),
                "prompt": (
                    "STRING",
                    {"multiline": True, "default": "", "tooltip": "What to draw, in English."},
                ),
                "guidance": (
                    "FLOAT",
                    {
                        "default": 3.5,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "How strictly dev follows the prompt; schnell ignores it.",
                    },
                ),
            },
            "optional": {
                "clip_prompt": (
                    "STRING",
                    {
                        "multiline": True,
                        "default": "",
                        "tooltip": "Another text for CLIP-L alone; empty means the same.",
                        "advanced": True,
                    },
                ),
                "t5_length": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 512,
                        "step": 8,
                        "tooltip": "Tokens that T5 gives: 512 for dev, 256 for schnell and as the "
                        "host has it; 0 takes what the tokenizer is made for.",
                        "advanced": True,
                    },
                ),
            },
        }

    def encode(
        self,
        text_encoders: FluxTextEncoders,
        prompt: str,
        guidance: float,
        clip_prompt: str = "",
        t5_length: int = 0,
    ):
        encoders = text_encoders.encoders
        runner = HostOffloadRunner(text_encoders.policy, host.device())
        (encoding,) = encode_prompts(
            runner,
            encoders,
            [prompt],
            (clip_prompt.strip() and clip_prompt) or None,
            t5_length or None,
            text_encoders.loras,
        )
        host.account(runner.report)
        extra = {"pooled_output": encoding.pooled.float(), "guidance": float(guidance)}
        return ([[encoding.context.float(), extra]],)
