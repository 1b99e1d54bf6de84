"""The nodes for inpainting that leaves no seam."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from flux_core.sampling.color import METHODS, match_color
from flux_core.sampling.images import as_masks, as_pictures
from flux_core.sampling.masks import MOST_FEATHER, keep_pixels_outside
from flux_core.sampling.stitch import (
    MULTIPLE,
    CropSettings,
    Stitch,
    crop_for_inpaint,
    stitch_back,
)

from .widgets import choice, integer, number, socket
from .wires import FLUX_MODEL, FLUX_STITCH, INPAINTING, FluxModel


class FluxFitDifferentialDiffusion:
    """Grey masks say from which step on a place is kept."""

    DESCRIPTION = (
        "With it a grey noise mask says how much a place changes: white is drawn in all steps, "
        "grey in the last ones, black is kept (differential diffusion). As ComfyUI's node of that "
        "name, for FluxSampler."
    )
    CATEGORY = INPAINTING
    FUNCTION = "make"
    SEARCH_ALIASES = ["soft inpainting", "inpaint gradient", "variable denoise strength"]
    RETURN_TYPES = (FLUX_MODEL,)
    RETURN_NAMES = ("model",)
    OUTPUT_TOOLTIPS = ("For FluxSampler or FluxFitHiresFix.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": socket(FLUX_MODEL, "From a loader."),
                "strength": number(
                    1.0,
                    0.0,
                    1.0,
                    0.01,
                    "Below 1 the grey mask is blended in; 0 is the same as 1, as in ComfyUI.",
                ),
            }
        }

    def make(self, model: FluxModel, strength: float):
        return (replace(model, differential=strength),)


class FluxFitCropForInpaint:
    """A part of a picture with its context, at the model's best size."""

    DESCRIPTION = (
        "Cuts out what a mask covers with context around it, and scales it to the size that the "
        "model draws best. FluxFitStitch puts it back, and leaves every pixel outside of the "
        "blended zone as it was."
    )
    CATEGORY = INPAINTING
    FUNCTION = "crop"
    SEARCH_ALIASES = ["inpaint crop", "crop and stitch", "masked only"]
    RETURN_TYPES = ("IMAGE", "MASK", FLUX_STITCH)
    RETURN_NAMES = ("image", "mask", "stitch")
    OUTPUT_TOOLTIPS = (
        "The part, to be drawn anew.",
        "The mask of that part, grown.",
        "The way back, for FluxFitStitch.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        def side(name: str) -> tuple:
            tooltip = f"The crop's {name}; 0 for both sides leaves the part as large as it is."
            return integer(1024, 0, 16384, tooltip, step=MULTIPLE)

        return {
            "required": {
                "image": socket("IMAGE", "One picture, or as many as there are masks."),
                "mask": socket("MASK", "1 where to draw anew; one, or as many as pictures."),
                "width": side("width"),
                "height": side("height"),
                "context": number(
                    1.5, 1.0, 10.0, 0.05, "How much larger than the mask's box the part is."
                ),
                "grow": integer(16, 0, 1024, "Pixels by which the mask is made larger."),
                "blur": integer(
                    16, 0, 1024, "Pixels over which what is drawn fades into the picture."
                ),
            }
        }

    def crop(self, image: Tensor, mask: Tensor, **settings: Any):
        crop = crop_for_inpaint(
            as_pictures(image, "image"), as_masks(mask, "mask"), CropSettings(**settings)
        )
        return (crop.images, crop.masks, crop.stitch)


class FluxFitStitch:
    """A drawn part back into its picture."""

    DESCRIPTION = (
        "Puts parts that FluxFitCropForInpaint cut out back into their pictures, with feathered "
        "blending. Pixels outside of the blended zone are equal to the bit."
    )
    CATEGORY = INPAINTING
    FUNCTION = "stitch_image"
    SEARCH_ALIASES = ["inpaint stitch", "crop and stitch", "uncrop"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The whole pictures.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "stitch": socket(FLUX_STITCH, "From FluxFitCropForInpaint."),
                "image": socket("IMAGE", "What was drawn; several of one part give as many."),
            }
        }

    def stitch_image(self, stitch: Stitch, image: Tensor):
        return (stitch_back(as_pictures(image, "image"), stitch),)


class FluxFitKeepPixels:
    """The original's pixels outside of a mask."""

    DESCRIPTION = (
        "Gives back the original's pixels, to the bit, where the mask is 0: encoding and decoding "
        "changes also what a noise mask kept. For inpainting without a crop."
    )
    CATEGORY = INPAINTING
    FUNCTION = "keep"
    SEARCH_ALIASES = ["image composite masked", "paste back", "keep outside"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("What was drawn inside of the mask, the original outside.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": socket("IMAGE", "What was drawn, from VAE Decode."),
                "original": socket("IMAGE", "The picture that was encoded, of the same size."),
                "mask": socket("MASK", "The mask that was drawn with, above 0 where it drew."),
                "feather": integer(
                    8, 0, MOST_FEATHER, "Pixels inside of the mask over which the drawing fades in."
                ),
            }
        }

    def keep(self, image: Tensor, original: Tensor, mask: Tensor, feather: int):
        pictures = as_pictures(image, "image"), as_pictures(original, "original")
        return (keep_pixels_outside(*pictures, as_masks(mask, "mask"), feather),)


class FluxFitColorMatch:
    """The colors of the original."""

    DESCRIPTION = (
        "Gives an inpainted or enlarged picture the colors of its original. wavelet takes over low "
        "frequencies and keeps detail; mean_std evens out mean and contrast of each channel. A "
        "mask says where to measure."
    )
    CATEGORY = INPAINTING
    FUNCTION = "match"
    SEARCH_ALIASES = ["color match", "color fix", "wavelet color fix", "color transfer"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("image",)
    OUTPUT_TOOLTIPS = ("The picture in the reference's colors.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": socket("IMAGE", "What is to change."),
                "reference": socket("IMAGE", "Whose colors it takes; of another size scaled."),
                "method": choice(
                    METHODS,
                    "wavelet: low frequencies. mean_std: mean and deviation of each channel.",
                    default="wavelet",
                ),
                "strength": number(1.0, 0.0, 1.0, 0.01, "0 leaves the picture as it is."),
            },
            "optional": {
                "mask": socket(
                    "MASK", "Where both show the same and are measured; everywhere without it."
                )
            },
        }

    def match(
        self,
        image: Tensor,
        reference: Tensor,
        method: str,
        strength: float,
        mask: Tensor | None = None,
    ):
        masks = None if mask is None else as_masks(mask, "mask")
        pictures = as_pictures(image, "image"), as_pictures(reference, "reference")
        return (match_color(*pictures, masks, method, strength),)
