"""Stand-ins for the host's nodes on MODEL, CLIP and CONDITIONING.

Outside of the host those wires carry what our own do, and our own nodes do the work.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core.sampling.latents import PIXELS_A_LATENT, latent_size
from flux_core.sampling.samplers import SAMPLERS
from flux_core.sampling.sigmas import SCHEDULERS

from ..sampler import FluxSampler
from ..text import FluxTextEncode
from ..wires import FluxModel, FluxTextEncoders, Latent

#: Tokens that the host pads T5's text to.
T5_TOKENS = 256
#: Inputs that several of the host's nodes have.
SEED = (
    "INT",
    {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True},
)
STEPS = ("INT", {"default": 20, "min": 1, "max": 10_000})
CFG = ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1})
DENOISE = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
GUIDANCE = ("FLOAT", {"default": 3.5, "min": 0.0, "max": 100.0, "step": 0.1})


def t5_tokens(clip: FluxTextEncoders) -> int:
    """Tokens that T5's text is padded to, for these encoders."""
    return min(T5_TOKENS, clip.module.length)


class CLIPTextEncode:
    """A prompt, with weights in brackets and embeddings as ``FluxTextEncode`` reads them."""

    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"multiline": True}), "clip": ("CLIP",)}}

    def encode(self, text: str, clip: FluxTextEncoders):
        length = t5_tokens(clip)
        ((context, extra),) = FluxTextEncode().encode(clip, text, 3.5, t5_length=length)[0]
        if clip.module.masks_padding:  # the host's has none
            context = context[:, :-1]
        return ([[context, {"pooled_output": extra["pooled_output"]}]],)


class FluxGuidance:
    """The distilled guidance of a prompt."""

    FUNCTION = "append"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "guidance": GUIDANCE,
            }
        }

    def append(self, conditioning: list, guidance: float):
        return ([[context, extra | {"guidance": guidance}] for context, extra in conditioning],)


class KSampler:
    """The stock sampler, with the samplers and schedulers that there are without the host."""

    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL",),
                "seed": SEED,
                "steps": STEPS,
                "cfg": CFG,
                "sampler_name": (list(SAMPLERS),),
                "scheduler": (list(SCHEDULERS),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": DENOISE,
            }
        }

    def sample(
        self,
        model: FluxModel,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: list,
        negative: list,
        latent_image: Latent,
        denoise: float,
    ):
        drawn = FluxSampler().sample(
            model,
            positive,
            latent_image,
            seed,
            steps,
            cfg,
            sampler_name,
            scheduler,
            "host",
            denoise,
            negative,
        )
        return (drawn["result"][0],)


class CLIPTextEncodeFlux:
    """A prompt for each encoder, and the distilled guidance."""

    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "clip": ("CLIP",),
                "clip_l": ("STRING", {"multiline": True}),
                "t5xxl": ("STRING", {"multiline": True}),
                "guidance": GUIDANCE,
            }
        }

    def encode(self, clip: FluxTextEncoders, clip_l: str, t5xxl: str, guidance: float):
        return FluxTextEncode().encode(clip, t5xxl, guidance, clip_l, t5_tokens(clip))


class ConditioningZeroOut:
    """A prompt that says nothing."""

    FUNCTION = "zero"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def zero(self, conditioning: list):
        zeroed = []
        for context, extra in conditioning:
            pooled = extra.get("pooled_output")
            nothing = {} if pooled is None else {"pooled_output": torch.zeros_like(pooled)}
            zeroed.append([torch.zeros_like(context), extra | nothing])
        return (zeroed,)


class SetLatentNoiseMask:
    """Where a latent is drawn anew."""

    FUNCTION = "set"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "mask": ("MASK",)}}

    def set(self, samples: Latent, mask: Tensor):
        return (samples | {"noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])},)


class InpaintModelConditioning:
    """What Fill reads beside the noise: a picture whose masked part is grey, and the mask."""

    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "vae": ("VAE",),
                "pixels": ("IMAGE",),
                "mask": ("MASK",),
                "noise_mask": ("BOOLEAN", {"default": True}),
            }
        }

    def encode(
        self,
        positive: list,
        negative: list,
        vae: Any,
        pixels: Tensor,
        mask: Tensor,
        noise_mask: bool,
    ):
        mask = mask.reshape(-1, 1, *mask.shape[-2:])
        mask = F.interpolate(mask, pixels.shape[1:3], mode="bilinear")
        rows, columns = middle(pixels)
        pixels, mask = pixels[:, rows, columns], mask[..., rows, columns]
        keep = (1 - mask.round()).movedim(1, -1)
        about = {
            "concat_latent_image": vae.encode((pixels - 0.5) * keep + 0.5),
            "concat_mask": mask,
        }
        latent = {"samples": vae.encode(pixels)} | ({"noise_mask": mask} if noise_mask else {})
        return (with_extra(positive, about), with_extra(negative, about), latent)


class InstructPixToPixConditioning:
    """What Canny and Depth read beside the noise: a picture of edges, or of depth."""

    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")

    @classmethod
    def INPUT_TYPES(cls):
        prompts = {"positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        return {"required": prompts | {"vae": ("VAE",), "pixels": ("IMAGE",)}}

    def encode(self, positive: list, negative: list, vae: Any, pixels: Tensor):
        rows, columns = middle(pixels)
        about = {"concat_latent_image": vae.encode(pixels[:, rows, columns])}
        latent = {"samples": torch.zeros_like(about["concat_latent_image"])}
        return (with_extra(positive, about), with_extra(negative, about), latent)


def middle(pixels: Tensor) -> tuple[slice, slice]:
    """Rows and columns of pictures (B, H, W, 3), without what is less than a latent at the rim."""
    height, width = pixels.shape[1:3]
    slices = []
    for length, latents in zip((height, width), latent_size(height, width), strict=True):
        start = (length - PIXELS_A_LATENT * latents) // 2
        slices.append(slice(start, start + PIXELS_A_LATENT * latents))
    return slices[0], slices[1]


def with_extra(prompt: list, about: dict[str, Tensor]) -> list:
    """A prompt with more said in each of its entries."""
    return [[context, extra | about] for context, extra in prompt]


class DifferentialDiffusion:
    """A grey noise mask says from which step on a place is kept."""

    FUNCTION = "execute"
    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        strength = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {"required": {"model": ("MODEL",)}, "optional": {"strength": strength}}

    def execute(self, model: FluxModel, strength: float = 1.0):
        return (replace(model, differential=strength),)


STOCK_SAMPLING = {
    "CLIPTextEncode": CLIPTextEncode,
    "CLIPTextEncodeFlux": CLIPTextEncodeFlux,
    "ConditioningZeroOut": ConditioningZeroOut,
    "DifferentialDiffusion": DifferentialDiffusion,
    "FluxGuidance": FluxGuidance,
    "InpaintModelConditioning": InpaintModelConditioning,
    "InstructPixToPixConditioning": InstructPixToPixConditioning,
    "KSampler": KSampler,
    "SetLatentNoiseMask": SetLatentNoiseMask,
}
