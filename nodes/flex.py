"""The node that puts the pictures of Flex.2 on a prompt."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flux_core.sampling.conditioning import ControlPicture

from .conditioning import CONTROL_PICTURE
from .vae import HostVAE
from .widgets import free_number, number, socket
from .wires import CONTROLS


class FluxFitFlexControl:
    """What Flex.2 reads beside the noise."""

    DESCRIPTION = (
        "Puts on a prompt what Flex.2 reads beside the noise: a picture to paint into with its "
        "mask, and a control picture (edges, depth, poses). Each may be left out. The model needs "
        "no ControlNet for it."
    )
    CATEGORY = CONTROLS
    FUNCTION = "apply"
    SEARCH_ALIASES = ["flex 2", "inpaint", "control", "flex2 conditioner"]
    RETURN_TYPES = ("CONDITIONING",)
    RETURN_NAMES = ("conditioning",)
    OUTPUT_TOOLTIPS = ("For FluxSampler, or for KSampler with the loader's MODEL.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "conditioning": socket("CONDITIONING", "From FluxTextEncode."),
                "vae": socket("VAE", "The VAE of FluxLoaderFP8: the pictures are encoded with it."),
                "strength": free_number(
                    1.0, -10.0, 10.0, 0.05, "How strongly the control picture counts."
                ),
                "end": number(
                    1.0,
                    0.0,
                    1.0,
                    0.01,
                    "The share of the steps, from 0 to 1, up to which the control picture counts.",
                ),
            },
            "optional": {
                "image": socket("IMAGE", "The picture to paint into."),
                "mask": socket("MASK", "1 where to paint anew; the rest of image is kept."),
                "control_image": socket("IMAGE", "Edges, depth or poses."),
            },
        }

    def apply(
        self,
        conditioning: list,
        vae: HostVAE,
        strength: float,
        end: float,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        control_image: Tensor | None = None,
    ):
        if (image is None) != (mask is None):
            raise ValueError("image and mask belong together: Flex.2 keeps image where mask is 0")
        more: dict[str, Any] = {}
        if image is not None and mask is not None:
            more["concat_latent_image"] = vae.encode(image)
            more["concat_mask"] = mask.reshape(-1, 1, *mask.shape[-2:])
        if control_image is not None:
            latents = vae.encode(control_image)
            more[CONTROL_PICTURE] = ControlPicture(latents, strength, 0.0, end)
        return ([[context, extra | more] for context, extra in conditioning],)
