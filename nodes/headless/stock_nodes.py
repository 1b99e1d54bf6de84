"""Stand-ins for the host's stock nodes, with the same names, inputs and results.

They cover what workflows made for FLUX.1 commonly use, and run where no host is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core.files import write_numbered
from flux_core.pictures import image_and_mask
from flux_core.receipts import KEY, Receipt, pixels_hash, png_bytes, saved_pixels
from flux_core.record import ReadFrom, note, stamp_of
from flux_core.sampling.images import scaled_to
from flux_core.sampling.latents import expand, latent_size

from .. import host
from ..wires import Latent

#: Of an input that names a picture of the input folder.
PICTURE = {"image_upload": True}
SIZE = {"min": 16, "max": 16384, "step": 16}


class LoadImage:
    """A picture from the input folder."""

    FUNCTION = "load"
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("STRING", PICTURE)}}

    def load(self, image: str):
        path = host.inside(host.input_folder(), annotated(image))
        if not path.is_file():
            raise FileNotFoundError(f"no picture {image!r} in {host.input_folder().resolve()}")
        note("input", picture=ReadFrom(path, stamp=stamp_of(path)))
        return image_and_mask(path)


class LoadImageMask:
    """One channel of a picture from the input folder, as a mask."""

    FUNCTION = "load"
    RETURN_TYPES = ("MASK",)
    CHANNELS = ("alpha", "red", "green", "blue")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("STRING", PICTURE), "channel": (list(cls.CHANNELS),)}}

    def load(self, image: str, channel: str):
        pictures, mask = LoadImage().load(image)
        if channel == "alpha":
            return (mask,)
        return (pictures[..., self.CHANNELS.index(channel) - 1],)


def annotated(name: str) -> str:
    """A picture's name without the folder that the page may put behind it."""
    stem, _, folder = name.rpartition(" [")
    if stem and folder == "input]":
        return stem
    if stem and folder in ("output]", "temp]"):
        raise ValueError(f"picture {name!r} is of another folder than input: not opened")
    return name


class SaveImage:
    """Pictures into the output folder, numbered, with the graph that drew them and what came of
    it."""

    FUNCTION = "save"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    HIDDEN = MappingProxyType(
        {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "unique_id": "UNIQUE_ID"}
    )

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI"}),
            },
            "hidden": dict(cls.HIDDEN),
        }

    def save(
        self,
        images: Tensor,
        filename_prefix: str,
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
        unique_id: str = "",
    ):
        start = host.inside(host.output_folder(), filename_prefix)
        texts = {} if prompt is None else {"prompt": json.dumps(prompt)}
        receipt = Receipt.parse(json.dumps((extra_pnginfo or {}).get(KEY, Receipt().to_json())))
        written = []
        for index, image in enumerate(images):
            pixels = saved_pixels(image)
            mine = receipt.of_picture(pixels_hash(pixels), unique_id, index, len(images))
            written.append(str(save_png(pixels, start, texts | {KEY: str(mine)})))
        return {"ui": {"images": written}}


def save_png(
    pixels: np.ndarray, start: Path, texts: Mapping[str, str] = MappingProxyType({})
) -> Path:
    """Write one picture, uint8 (H, W, 3), beside its elders, under the next free number.

    ``texts`` go into it by their keys, as the host's pictures carry theirs. Who writes at the same
    time gets another number.
    """
    return write_numbered(start, ".png", png_bytes(pixels, texts))


class PreviewImage(SaveImage):
    """As SaveImage, under a name of its own."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}, "hidden": dict(cls.HIDDEN)}

    def save(
        self,
        images: Tensor,
        filename_prefix: str = "preview",
        prompt: dict[str, Any] | None = None,
        extra_pnginfo: dict[str, Any] | None = None,
        unique_id: str = "",
    ):
        return super().save(images, filename_prefix, prompt, extra_pnginfo, unique_id)


class VAEDecode:
    FUNCTION = "decode"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def decode(self, samples: dict, vae: Any):
        return (vae.decode(samples["samples"]),)


class VAEEncode:
    FUNCTION = "encode"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def encode(self, pixels: Tensor, vae: Any):
        return ({"samples": vae.encode(pixels)},)


class EmptySD3LatentImage:
    """16-channel latents of nothing."""

    FUNCTION = "make"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "width": ("INT", {"default": 1024, **SIZE}),
                "height": ("INT", {"default": 1024, **SIZE}),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def make(self, width: int, height: int, batch_size: int):
        return ({"samples": torch.zeros(batch_size, 16, *latent_size(height, width))},)


class EmptyLatentImage(EmptySD3LatentImage):
    """The same under the name of older graphs."""


class RepeatLatentBatch:
    """Latents several times over."""

    FUNCTION = "repeat"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        amount = ("INT", {"default": 1, "min": 1, "max": 64})
        return {"required": {"samples": ("LATENT",), "amount": amount}}

    def repeat(self, samples: Latent, amount: int):
        latents = samples["samples"]
        repeated = dict(samples) | {"samples": latents.repeat(amount, 1, 1, 1)}
        mask, places = samples.get("noise_mask"), samples.get("batch_index")
        if mask is not None and len(mask) > 1:
            mask = expand(mask, len(latents))
            repeated["noise_mask"] = mask.repeat(amount, *[1] * (mask.ndim - 1))
        if places:
            offset = max(places) - min(places) + 1
            repeated["batch_index"] = [n + i * offset for i in range(amount) for n in places]
        return (repeated,)


#: How sides are scaled.
WAYS = ("nearest-exact", "bilinear", "area", "bicubic")


def factor_inputs(default: float) -> dict[str, tuple]:
    """How sides are scaled, and by how much."""
    factor = {"default": default, "min": 0.01, "max": 8.0, "step": 0.01}
    return {"upscale_method": (list(WAYS),), "scale_by": ("FLOAT", factor)}


class LatentUpscaleBy:
    """Latents' sides times a factor."""

    FUNCTION = "scale"
    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)} | factor_inputs(1.5)}

    def scale(self, samples: Latent, upscale_method: str, scale_by: float):
        latents = samples["samples"]
        size = [max(1, round(side * scale_by)) for side in latents.shape[-2:]]
        return (samples | {"samples": F.interpolate(latents, size, mode=upscale_method)},)


class ImageScale:
    """Pictures in another size, cut to its shape around their middle or stretched to it."""

    FUNCTION = "scale"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        side = ("INT", {"default": 512, "min": 0, "max": 16384, "step": 1})
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(WAYS),),
                "width": side,
                "height": side,
                "crop": (["disabled", "center"],),
            }
        }

    def scale(self, image: Tensor, upscale_method: str, width: int, height: int, crop: str):
        rows, columns = image.shape[1:3]
        if not width and not height:
            return (image,)
        width = width or max(1, round(columns * height / rows))
        height = height or max(1, round(rows * width / columns))
        pixels = image.movedim(-1, 1)
        pixels = scaled_to(pixels, height, width, upscale_method, crop == "center")
        return (pixels.movedim(1, -1),)


class Primitive:
    """A value on a wire; a class for each type of value."""

    FUNCTION = "pass_on"

    def pass_on(self, value: Any):
        return (value,)


def primitive(kind: str, **options: Any) -> type:
    """The class of nodes that hold one value of a type."""

    def inputs(cls: type) -> dict[str, Any]:
        return {"required": {"value": (kind, options)}}

    return type(
        f"Primitive{kind}",
        (Primitive,),
        {"RETURN_TYPES": (kind,), "INPUT_TYPES": classmethod(inputs)},
    )


class ImageScaleBy:
    """Sides times a factor."""

    FUNCTION = "scale"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)} | factor_inputs(1.0)}

    def scale(self, image: Tensor, upscale_method: str, scale_by: float):
        height, width = (round(side * scale_by) for side in image.shape[1:3])
        scaled = F.interpolate(image.movedim(-1, 1), (height, width), mode=upscale_method)
        return (scaled.movedim(1, -1),)


class ImageBlur:
    """A Gaussian blur, edges mirrored."""

    FUNCTION = "blur"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "blur_radius": ("INT", {"default": 1, "min": 1, "max": 31, "step": 1}),
                "sigma": ("FLOAT", {"default": 1.0, "min": 0.1, "max": 10.0, "step": 0.1}),
            }
        }

    def blur(self, image: Tensor, blur_radius: int, sigma: float):
        reach = torch.linspace(-1, 1, 2 * blur_radius + 1)  # the host measures in radii
        distance = torch.sqrt(reach[:, None] ** 2 + reach[None, :] ** 2)
        kernel = torch.exp(-(distance**2) / (2 * sigma**2))
        weights = (kernel / kernel.sum()).expand(image.shape[-1], 1, -1, -1)
        padded = F.pad(image.movedim(-1, 1), (blur_radius,) * 4, mode="reflect")
        return (F.conv2d(padded, weights, groups=image.shape[-1]).movedim(1, -1),)


STOCK = {
    "EmptyLatentImage": EmptyLatentImage,
    "ImageScale": ImageScale,
    "LatentUpscaleBy": LatentUpscaleBy,
    "LoadImageMask": LoadImageMask,
    "PrimitiveBoolean": primitive("BOOLEAN", default=False),
    "PrimitiveFloat": primitive("FLOAT", default=0.0),
    "PrimitiveInt": primitive("INT", default=0, control_after_generate=True),
    "PrimitiveString": primitive("STRING", default=""),
    "PrimitiveStringMultiline": primitive("STRING", default="", multiline=True),
    "RepeatLatentBatch": RepeatLatentBatch,
    "ImageScaleBy": ImageScaleBy,
    "ImageBlur": ImageBlur,
    "LoadImage": LoadImage,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "VAEDecode": VAEDecode,
    "VAEEncode": VAEEncode,
    "EmptySD3LatentImage": EmptySD3LatentImage,
}
