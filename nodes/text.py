"""The node that turns a prompt into CONDITIONING."""

from __future__ import annotations

from flux_core.sampling.prompts import encode_prompts

from . import accounts, host
from .memory_manager import HostOffloadRunner
from .widgets import integer, number, socket, text
from .wires import FLUX_TEXT_ENCODERS, SAMPLING, FluxTextEncoders


class FluxTextEncode:
    """A prompt."""

    DESCRIPTION = (
        "Encodes a prompt with CLIP-L and T5, with T5 alone for Chroma, or with FLUX.2's language "
        "model. The result is the host's CONDITIONING and also fits stock nodes. Weights such as "
        "(word:1.2) and embedding:name mean what they mean there; a language model reads them as "
        "letters."
    )
    CATEGORY = SAMPLING
    FUNCTION = "encode"
    SEARCH_ALIASES = ["prompt", "flux prompt", "text encode"]
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_TOOLTIPS = ("Context, pooled vector of CLIP-L where there is one, and guidance.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "text_encoders": socket(
                    FLUX_TEXT_ENCODERS,
                    "From FluxLoaderFP8, or FluxFitTextEncoderLoader for FLUX.2.",
                ),
                "prompt": text(
                    "", "What to draw, in English.", multiline=True, dynamicPrompts=True
                ),
                "guidance": number(
                    3.5,
                    0.0,
                    100.0,
                    0.1,
                    "How strictly dev follows the prompt; schnell, klein and Chroma ignore it.",
                ),
            },
            "optional": {
                "clip_prompt": text(
                    "",
                    "Another text for CLIP-L alone; empty means the same. Others have no CLIP-L.",
                    multiline=True,
                    dynamicPrompts=True,
                    advanced=True,
                ),
                "t5_length": integer(
                    0,
                    0,
                    512,
                    "Tokens that T5 gives at least: 512 for dev, 256 for schnell and as the "
                    "host has it; 0 takes what the tokenizer is made for. A longer prompt has "
                    "more; for Chroma there are as many as the prompt has. A language model "
                    "gives 512, or this many.",
                    step=8,
                    advanced=True,
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
        accounts.account(runner.report)
        extra: dict[str, object] = {"pooled_output": None}
        if not encoders.masks_padding:  # whose models read no guidance
            extra["guidance"] = float(guidance)
        if encoding.pooled.numel():
            extra["pooled_output"] = encoding.pooled.float()
        return ([[encoding.context.float(), extra]],)
