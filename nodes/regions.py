"""The nodes that give parts of a picture prompts of their own, read by attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from flux_core.report.regions import regions_picture
from flux_core.sampling.conditioning import Region, RegionalOptions
from flux_core.sampling.regional import as_regional, box_region

from .conditioning import REGIONS_KEY, conditioning_of
from .widgets import integer, number, socket, text
from .wires import FLUX_REGIONS, SAMPLING, NamedRegion

USUAL = RegionalOptions()


class FluxFitRegion:
    """A prompt for a part of the picture."""

    DESCRIPTION = (
        "A prompt for a part of the picture: where a mask is, or inside a box. Chain several and "
        "wire the last into FLUX Regional Prompts. All of them are read in one call of the model."
    )
    CATEGORY = SAMPLING
    FUNCTION = "add"
    SEARCH_ALIASES = ["region", "regional prompt", "area", "mask prompt", "attention couple"]
    RETURN_TYPES = (FLUX_REGIONS,)
    RETURN_NAMES = ("regions",)
    OUTPUT_TOOLTIPS = ("For FLUX Regional Prompts, or the next region.",)

    @classmethod
    def INPUT_TYPES(cls):
        def share(default: float, tooltip: str) -> tuple:
            return number(default, 0.0, 1.0, 0.01, tooltip)

        return {
            "required": {
                "conditioning": socket("CONDITIONING", "What to draw there; one prompt."),
                "name": text("", "Shown in the picture of the regions; empty numbers them."),
                "left": share(0.0, "Where the box begins, in shares of the width."),
                "top": share(0.0, "Where the box begins, in shares of the height."),
                "width": share(0.5, "How wide the box is, in shares of the picture."),
                "height": share(1.0, "How high the box is, in shares of the picture."),
                "strength": number(
                    1.0, 0.0, 10.0, 0.05, "How much the prompt is read there; 0 not at all."
                ),
            },
            "optional": {
                "mask": socket(
                    "MASK", "Where it counts, of any size, instead of the box; greys are in part."
                ),
                "regions": socket(FLUX_REGIONS, "Regions before this one."),
            },
        }

    def add(
        self,
        conditioning: list,
        name: str,
        left: float,
        top: float,
        width: float,
        height: float,
        strength: float,
        mask: Tensor | None = None,
        regions: Sequence[NamedRegion] = (),
    ):
        prompts = conditioning_of(conditioning, "conditioning")
        if len(prompts) != 1:
            raise ValueError(f"conditioning has {len(prompts)} prompts, expected one for a region")
        if mask is not None:
            place = Region(mask=mask, strength=strength)
        else:
            box = (left, top, min(1.0, left + width), min(1.0, top + height))
            place = replace(box_region(box), strength=strength)
        named = NamedRegion(name.strip(), replace(prompts[0], region=place))
        return ((*regions, named),)


class FluxFitRegionalPrompts:
    """A prompt with its regions."""

    DESCRIPTION = (
        "Puts regions onto the prompt of the whole picture, for FLUX Sampler: every part reads its "
        "own text by attention, in one call of the model. Prompts with ConditioningSetMask or "
        "SetArea that are combined with the whole picture's become regions too. Shows where they "
        "are."
    )
    CATEGORY = SAMPLING
    FUNCTION = "combine"
    SEARCH_ALIASES = ["regional prompting", "region attention", "attention couple", "area"]
    RETURN_TYPES = ("CONDITIONING", "IMAGE")
    RETURN_NAMES = ("conditioning", "picture")
    OUTPUT_TOOLTIPS = (
        "For FLUX Sampler's positive or negative.",
        "The regions in colours, with their names.",
    )

    @classmethod
    def INPUT_TYPES(cls):
        def share(default: float, tooltip: str) -> tuple:
            return number(default, 0.0, 1.0, 0.05, tooltip)

        return {
            "required": {
                "conditioning": socket(
                    "CONDITIONING",
                    "The prompt of the whole picture. Entries with a mask or an area, combined "
                    "with it, become regions.",
                ),
                "share": share(
                    USUAL.share, "The first share of the steps in which regions count; 1 is all."
                ),
                "base": share(
                    USUAL.base, "How much regions read the whole picture's prompt as well."
                ),
                "across": share(
                    USUAL.across,
                    "How much parts of the picture in different regions see each other. Less keeps "
                    "colours and styles apart, and shows seams.",
                ),
                "later": share(
                    USUAL.later, "How much regions count in the steps after share; 0 not at all."
                ),
            },
            "optional": {
                "regions": socket(FLUX_REGIONS, "From FLUX Region."),
                "picture_width": integer(
                    512, 64, 4096, "Pixels of the picture of the regions.", advanced=True
                ),
                "picture_height": integer(
                    512, 64, 4096, "Pixels of the picture of the regions.", advanced=True
                ),
            },
        }

    def combine(
        self,
        conditioning: list,
        share: float,
        base: float,
        across: float,
        later: float,
        regions: Sequence[NamedRegion] = (),
        picture_width: int = 512,
        picture_height: int = 512,
    ):
        prompts = conditioning_of(conditioning, "conditioning")
        options = RegionalOptions(share, base, across, later)
        whole = as_regional([*prompts, *(region.prompt for region in regions)], options)
        (entry,) = [e for e, p in zip(conditioning, prompts, strict=True) if p.whole]
        assert whole.regional is not None
        before = len(whole.regional.prompts) - len(regions)
        names = [*("" for _ in range(before)), *(region.name for region in regions)]
        names = [name or f"region {number}" for number, name in enumerate(names, 1)]
        picture = regions_picture(whole.regional, names, picture_height, picture_width)
        return [[entry[0], entry[1] | {REGIONS_KEY: whole.regional}]], picture[None]
