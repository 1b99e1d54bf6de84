"""Stand-ins for the host's stock nodes for reference pictures: its names, inputs and results."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core.sampling.reference_pictures import lanczos, preferred_size

from ..reference import with_method, with_references
from ..wires import Latent

#: By the host's names; a grey, or red, green and blue.
COLOURS: dict[str, tuple[float, ...]] = {
    "white": (1.0,),
    "black": (0.0,),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
}
METHODS = ("offset", "index", "uxo/uno", "index_timestep_zero")


class ReferenceLatent:
    """Latents that an edit model looks at."""

    FUNCTION = "append"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"conditioning": ("CONDITIONING",)},
            "optional": {"latent": ("LATENT",)},
        }

    def append(self, conditioning: list, latent: Latent | None = None):
        if latent is None:
            return (conditioning,)
        return (with_references(conditioning, [latent["samples"]]),)


class FluxKontextMultiReferenceLatentMethod:
    """How several references are placed."""

    FUNCTION = "append"
    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "reference_latents_method": (list(METHODS),),
            }
        }

    def append(self, conditioning: list, reference_latents_method: str):
        return (with_method(conditioning, reference_latents_method.partition("/")[0]),)


class FluxKontextImageScale:
    """A picture in the nearest size that Kontext was trained on."""

    FUNCTION = "scale"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def scale(self, image: Tensor):
        return (lanczos(image, *preferred_size(*image.shape[1:3])),)


class ImageStitch:
    """Two pictures side by side, or one above the other."""

    FUNCTION = "stitch"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        width = {"default": 0, "min": 0, "max": 1024, "step": 2}
        return {
            "required": {
                "image1": ("IMAGE",),
                "direction": (["right", "down", "left", "up"], {"default": "right"}),
                "match_image_size": ("BOOLEAN", {"default": True}),
                "spacing_width": ("INT", width),
                "spacing_color": (list(COLOURS), {"default": "white"}),
            },
            "optional": {"image2": ("IMAGE",)},
        }

    def stitch(
        self,
        image1: Tensor,
        direction: str,
        match_image_size: bool,
        spacing_width: int,
        spacing_color: str,
        image2: Tensor | None = None,
    ):
        if image2 is None:
            return (image1,)
        count = max(len(image1), len(image2))
        first, second = (longer(image, count) for image in (image1, image2))
        across = 2 if direction in ("left", "right") else 1  # the axis along which they follow
        colour = COLOURS[spacing_color]
        if match_image_size:
            second = fitted(second, first, across)
        else:
            size = max(first.shape[3 - across], second.shape[3 - across])
            grey = colour[0] if len(colour) == 1 else 0.0
            first, second = (padded(x, 3 - across, size, grey) for x in (first, second))
        channels = max(first.shape[-1], second.shape[-1])
        first, second = (opaque(x, channels) for x in (first, second))
        parts = [second, first] if direction in ("left", "up") else [first, second]
        if spacing_width:
            parts.insert(1, band(first, across, spacing_width + spacing_width % 2, colour))
        return (torch.cat(parts, dim=across),)


def longer(image: Tensor, count: int) -> Tensor:
    """Pictures (B, H, W, C), the last one repeated until there are ``count``."""
    return torch.cat([image, image[-1:].repeat(count - len(image), 1, 1, 1)])


def fitted(image: Tensor, other: Tensor, across: int) -> Tensor:
    """A picture (B, H, W, C) scaled to another's height, or width where they stand in a column."""
    shape = image.shape[2] / image.shape[1]
    height, width = other.shape[1:3]
    size = (height, int(height * shape)) if across == 2 else (int(width / shape), width)
    return lanczos(image, *size, crop=False)


def padded(image: Tensor, axis: int, size: int, value: float) -> Tensor:
    """A picture (B, H, W, C) in the middle of a longer axis."""
    missing = size - image.shape[axis]
    around = (missing // 2, missing - missing // 2)
    return F.pad(image, (0, 0, *around) if axis == 2 else (0, 0, 0, 0, *around), value=value)


def opaque(image: Tensor, channels: int) -> Tensor:
    """A picture (B, H, W, C) with so many channels, those that it lacks of ones."""
    return F.pad(image, (0, channels - image.shape[-1]), value=1.0)


def band(image: Tensor, across: int, width: int, colour: tuple[float, ...]) -> Tensor:
    """A strip of one colour, (B, H, width, C) or (B, width, W, C), to stand beside a picture."""
    shape = list(image.shape)
    shape[across] = width
    strip = image.new_zeros(shape)
    strip[..., :3] = image.new_tensor(colour)
    if shape[-1] == 4:
        strip[..., 3] = 1.0
    return strip


STOCK_REFERENCES = {
    "ReferenceLatent": ReferenceLatent,
    "FluxKontextImageScale": FluxKontextImageScale,
    "FluxKontextMultiReferenceLatentMethod": FluxKontextMultiReferenceLatentMethod,
    "ImageStitch": ImageStitch,
}
