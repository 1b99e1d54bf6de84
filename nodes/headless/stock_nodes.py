"""Stand-ins for the host's stock nodes, with the same names, inputs and results.

They cover what workflows made for FLUX.1 commonly use, and run where no host is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from flux_core.sampling.latents import latent_size

from .. import host

SIZE = {"min": 16, "max": 16384, "step": 16}


class LoadImage:
    """A picture from the input folder."""

    FUNCTION = "load"
    RETURN_TYPES = ("IMAGE", "MASK")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("STRING", {"image_upload": True})}}

    def load(self, image: str):
        path = host.inside(host.input_folder(), image)
        if not path.is_file():
            raise FileNotFoundError(f"no picture {image!r} in {host.input_folder().resolve()}")
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
        tensor = torch.from_numpy(pixels)[None]
        return tensor[..., :3], 1 - tensor[..., 3]


class SaveImage:
    """Pictures into the output folder, numbered."""

    FUNCTION = "save"
    RETURN_TYPES = ()
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "FluxFit"}),
            }
        }

    def save(self, images: Tensor, filename_prefix: str):
        start = host.inside(host.output_folder(), filename_prefix)
        start.parent.mkdir(parents=True, exist_ok=True)
        return {"ui": {"images": [str(save_png(image, start)) for image in images]}}


def save_png(image: Tensor, start: Path) -> Path:
    """Write one picture (H, W, 3) beside its elders, under the next free number."""
    pixels = (image.clamp(0, 1) * 255).to(torch.uint8).cpu().numpy()
    taken = [p.stem.rpartition("_")[2] for p in start.parent.glob(f"{start.name}_*.png")]
    number = 1 + max((int(n) for n in taken if n.isdigit()), default=0)
    path = start.parent / f"{start.name}_{number:05}.png"
    partial = path.with_suffix(".partial")
    Image.fromarray(pixels).save(partial, format="PNG")
    partial.replace(path)
    return path


class PreviewImage(SaveImage):
    """As SaveImage, under a name of its own."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"images": ("IMAGE",)}}

    def save(self, images: Tensor, filename_prefix: str = "preview"):
        return super().save(images, filename_prefix)


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


class ImageScaleBy:
    """Sides times a factor."""

    FUNCTION = "scale"
    RETURN_TYPES = ("IMAGE",)
    WAYS = ("nearest-exact", "bilinear", "area", "bicubic")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (list(cls.WAYS),),
                "scale_by": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

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
    "ImageScaleBy": ImageScaleBy,
    "ImageBlur": ImageBlur,
    "LoadImage": LoadImage,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "VAEDecode": VAEDecode,
    "VAEEncode": VAEEncode,
    "EmptySD3LatentImage": EmptySD3LatentImage,
}
