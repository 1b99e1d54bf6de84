"""The nodes for pictures as part of a prompt: vision encoders and Redux.

What the loaders give stands on the host's own wires, CLIP_VISION and STYLE_MODEL: stock nodes take
it, and these nodes take what stock loaders give.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flux_core import (
    Conditioning,
    OffloadPolicy,
    ReduxModel,
    VisionEncoder,
    load_redux,
    load_vision_encoder,
)
from flux_core.models.vision import VisionFeatures
from flux_core.sampling.redux import MERGES, STRENGTH_TYPES, merged, on_grid, with_tokens
from flux_core.sampling.redux import redux_tokens as tokens_of
from flux_core.sampling.vision import encode_vision

from . import accounts, host
from .conditioning import attention_of, text_mask_of, with_attention
from .loaders import PRECISION_CHOICES, PRECISION_HELP
from .memory_manager import HostOffloadRunner
from .weights import OpenedByNode
from .widgets import choice, integer, model_file, number, policy_input, socket
from .wires import IMAGE_PROMPTS

VISION_FOLDER, STYLE_FOLDER = "clip_vision", "style_models"
#: How pictures become squares, by the host's names.
CROPS = ("center", "none")
NO_PICTURE = "wire clip_vision_output, or clip_vision and image"


class HostVisionOutput:
    """What the host's nodes read of CLIP_VISION_OUTPUT.

    ``pooled`` (n, P) is the vector of the whole picture; ``image_embeds`` is that for CLIP, and for
    SigLIP the tokens, as the host has it.
    """

    def __init__(self, seen: VisionFeatures, siglip: bool) -> None:
        self.last_hidden_state, self.pooled = seen.tokens, seen.pooled
        self.image_embeds = seen.tokens if siglip else seen.pooled

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class HostVision:
    """A vision encoder behind the method that the host's nodes call on a CLIP_VISION wire."""

    def __init__(self, model: VisionEncoder, policy: OffloadPolicy) -> None:
        self.model, self.policy = model, policy

    def encode_image(self, image: Tensor, crop: bool = True) -> HostVisionOutput:
        """Pictures (n, H, W, 3) in [0, 1], seen; its tensors are on the CPU, tokens (n, N, D)."""
        runner = HostOffloadRunner(self.policy, host.device())
        seen = encode_vision(runner, self.model, image, crop)
        accounts.account(runner.report)
        return HostVisionOutput(seen, self.model.config.siglip)


class HostStyleModel:
    """Redux behind the method that the host's nodes call on a STYLE_MODEL wire."""

    def __init__(self, model: ReduxModel, policy: OffloadPolicy) -> None:
        self.model, self.policy = model, policy

    def get_cond(self, seen: Any) -> Tensor:
        """Tokens (n, M, C) of what a vision encoder saw, on the CPU."""
        runner = HostOffloadRunner(self.policy, host.device())
        tokens = tokens_of(runner, self.model, seen.last_hidden_state)
        accounts.account(runner.report)
        return tokens


def seen_by(clip_vision_output: Any, clip_vision: Any, image: Tensor | None, crop: str) -> Any:
    """What a vision encoder saw in pictures (n, H, W, 3), or has seen before."""
    if clip_vision_output is not None:
        return clip_vision_output
    if clip_vision is None or image is None:
        raise ValueError(f"there is no picture: {NO_PICTURE}")
    return clip_vision.encode_image(image, crop=crop == "center")


def picture_inputs() -> dict[str, Any]:
    """How a node comes by what an encoder saw."""
    return {
        "clip_vision_output": socket(
            "CLIP_VISION_OUTPUT", "From CLIP Vision Encode; or wire clip_vision and image."
        ),
        "clip_vision": socket(
            "CLIP_VISION", "From FLUX Vision Loader or Load CLIP Vision, to see image with."
        ),
        "image": socket("IMAGE", "The picture that prompts; several of them prompt together."),
        "crop": choice(
            CROPS,
            "How image becomes a square. center: cut around its middle. none: squeezed.",
            default="center",
        ),
    }


class FluxFitVisionLoader:
    """A vision encoder."""

    DESCRIPTION = (
        "Opens a vision encoder, which sees pictures for Redux and IP-Adapters: SigLIP so400m for "
        "Redux and InstantX's IP-Adapter, CLIP-L for XLabs'. At any precision, under any policy."
    )
    CATEGORY = IMAGE_PROMPTS
    FUNCTION = "load"
    SEARCH_ALIASES = ["clip vision", "siglip", "load clip vision"]
    RETURN_TYPES = ("CLIP_VISION",)
    RETURN_NAMES = ("clip_vision",)
    OUTPUT_TOOLTIPS = ("For FLUX Redux, FLUX Apply IP-Adapter, or CLIP Vision Encode.",)

    def __init__(self) -> None:
        self.opened = OpenedByNode()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "vision": model_file((VISION_FOLDER,), "A file of the folder models/clip_vision."),
                "precision": choice(PRECISION_CHOICES, PRECISION_HELP, default="bf16"),
            },
            "optional": {"policy": policy_input()},
        }

    def load(self, vision: str, precision: str, policy: OffloadPolicy | None = None):
        model = self.opened.part(
            "clip_vision",
            vision,
            (VISION_FOLDER,),
            precision,
            lambda path: load_vision_encoder(path, precision=precision),
        )
        return (HostVision(model, policy or OffloadPolicy()),)


class FluxFitReduxLoader:
    """A Redux model."""

    DESCRIPTION = (
        "Opens FLUX.1 Redux (a style model): it turns what SigLIP sees in a picture into words of "
        "the prompt. At any precision, under any policy."
    )
    CATEGORY = IMAGE_PROMPTS
    FUNCTION = "load"
    SEARCH_ALIASES = ["style model", "load style model", "redux"]
    RETURN_TYPES = ("STYLE_MODEL",)
    RETURN_NAMES = ("style_model",)
    OUTPUT_TOOLTIPS = ("For FLUX Redux, or Apply Style Model.",)

    def __init__(self) -> None:
        self.opened = OpenedByNode()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "redux": model_file((STYLE_FOLDER,), "A file of the folder models/style_models."),
                "precision": choice(PRECISION_CHOICES, PRECISION_HELP, default="bf16"),
            },
            "optional": {"policy": policy_input()},
        }

    def load(self, redux: str, precision: str, policy: OffloadPolicy | None = None):
        model = self.opened.part(
            "style_model",
            redux,
            (STYLE_FOLDER,),
            precision,
            lambda path: load_redux(path, precision=precision),
        )
        return (HostStyleModel(model, policy or OffloadPolicy()),)


class FluxFitRedux:
    """Pictures in a prompt."""

    DESCRIPTION = (
        "Adds pictures to a prompt with FLUX.1 Redux, as Apply Style Model does, with fewer tokens "
        "where the words are to say more, and a mask over the picture. Chain it for more pictures."
    )
    CATEGORY = IMAGE_PROMPTS
    FUNCTION = "apply"
    SEARCH_ALIASES = ["redux", "style model", "apply style model", "image prompt"]
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_TOOLTIPS = ("For FLUX Sampler, the stock samplers, or the next FLUX Redux.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "conditioning": socket("CONDITIONING", "The prompt in words."),
                "style_model": socket(
                    "STYLE_MODEL", "From FLUX Redux Loader, or Load Style Model."
                ),
                "strength": number(
                    1.0, 0.0, 10.0, 0.01, "How much the pictures say beside the words."
                ),
                "strength_type": choice(
                    STRENGTH_TYPES,
                    "multiply: the pictures' tokens are scaled. attn_bias: they are attended to "
                    "less or more, which follows the strength evenly and takes longer.",
                    default=STRENGTH_TYPES[0],
                ),
                "grid": integer(
                    0,
                    0,
                    64,
                    "Tokens to a side that are left of a picture, averaged over neighbours: 27 are "
                    "all, 9 leave words much more to say, 1 the mood alone. 0: all.",
                ),
                "merge": choice(
                    MERGES,
                    "How several pictures of one batch come together. sum: blended into one, in "
                    "equal shares.",
                    default=MERGES[0],
                ),
            },
            "optional": picture_inputs()
            | {"mask": socket("MASK", "1 where the picture counts, in the picture's size.")},
        }

    def apply(
        self,
        conditioning: list,
        style_model: Any,
        strength: float,
        strength_type: str,
        grid: int,
        merge: str,
        clip_vision_output: Any = None,
        clip_vision: Any = None,
        image: Tensor | None = None,
        crop: str = "center",
        mask: Tensor | None = None,
    ):
        seen = seen_by(clip_vision_output, clip_vision, image, crop)
        pictures = on_grid(style_model.get_cond(seen).cpu(), grid, mask, crop == "center")
        shares = [1 / len(pictures)] * len(pictures) if merge == MERGES[1] else None
        tokens = merged(pictures, shares, merge)
        entries = []
        for context, extra in conditioning:
            text_mask = text_mask_of(extra, "conditioning")
            prompt = Conditioning(context, None, attention=attention_of(extra), text_mask=text_mask)
            longer = with_tokens(prompt, tokens, strength, strength_type)
            extra = with_attention(extra, longer.attention, longer.text_mask)
            entries.append([longer.context, extra])
        return (entries,)
