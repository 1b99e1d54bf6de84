"""The nodes that open a ControlNet and give it a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import Control, FluxControlNet, OffloadPolicy, load_controlnet
from flux_core.bounds import check_span
from flux_core.models.controlnet import UNION_MODES
from flux_core.sampling.images import to_images, to_pixels

from . import host
from .loaders import PRECISION_CHOICES, PRECISION_HELP
from .vae import HostVAE
from .weights import OpenedByNode, Wanted, weights_key
from .widgets import choice, compute_input, model_file, number, policy_input, socket
from .wires import CONTROLS, FLUX_CONTROL, controls_of

FOLDER = "controlnet"
NO_MODE = "none"


def common_inputs(strength: float) -> dict[str, Any]:
    """Inputs of every ControlNet node."""
    return {
        "vae": socket("VAE", "The VAE of FluxLoaderFP8: the picture is encoded with it."),
        "image": socket("IMAGE", "The picture that guides the drawing."),
        "controlnet": model_file((FOLDER,), "A file of the folder models/controlnet."),
        "precision": choice(PRECISION_CHOICES, PRECISION_HELP, default="fp8_scaled"),
        "strength": number(
            strength, 0.0, 10.0, 0.01, "How much the ControlNet says; 0 leaves it out."
        ),
        "start": number(
            0.0, 0.0, 1.0, 0.01, "From which share of the schedule on; 0 is the beginning."
        ),
        "end": number(1.0, 0.0, 1.0, 0.01, "Until which share of the schedule; 1 is the end."),
    }


def optional_inputs() -> dict[str, Any]:
    return {
        "control": socket(FLUX_CONTROL, "More ControlNets to use beside this one."),
        "compute": compute_input(),
        "policy": policy_input("Where its weights wait; without it, with the transformer's."),
    }


class OpenedControl(OpenedByNode):
    """A node's net, and the picture that was encoded for it last."""

    def __init__(self) -> None:
        super().__init__()
        self.about: tuple[object, ...] = ()
        self.cond: Tensor | None = None

    def encoded(self, net: FluxControlNet, vae: HostVAE, image: Tensor) -> Tensor:
        """Pictures (B, H, W, 3) as a net wants them: pixels or latents; the same ones once."""
        hint = bool(net.config.hint)
        about = (hint, None if hint else vae.first_stage_model)
        known = len(self.about) == 3 and self.about[:2] == about
        if not known or not torch.equal(cast(Tensor, self.about[2]), image):
            self.cond = to_pixels(image) if hint else vae.encode(image)
            self.about = (*about, image)
        assert self.cond is not None
        return self.cond


def make_control(
    opened: OpenedControl,
    vae: HostVAE,
    image: Tensor,
    controlnet: str,
    precision: str,
    strength: float,
    start: float,
    end: float,
    mode: int | None = None,
    mask: Tensor | None = None,
    compute: str = "auto",
    policy: OffloadPolicy | None = None,
) -> Control:
    """Open the net and encode the picture as it wants it."""
    check_span(start, end, "the ControlNet's")
    path = host.model_path(controlnet, FOLDER)
    with host.progress(100, "loading ControlNet") as bar:
        net = opened.one(
            Wanted(
                weights_key("controlnet", path, precision),
                lambda: load_controlnet(
                    path,
                    precision=precision,
                    progress=lambda done, total: bar.update(100 * done // total),
                ),
            )
        )
    if net.config.num_modes and mode is None:
        raise ValueError(f"{path}: is a union ControlNet, choose a mode in FluxFitControlNet")
    if mask is not None and not net.wants_mask:
        raise ValueError(f"{path}: is no ControlNet for inpainting and reads no mask: unwire it")
    if mask is not None:
        image = image * (1 - as_large_as(mask, image).round())  # to paint anew: shown as black
    cond = opened.encoded(net, vae, image)
    return Control(
        net,
        cond,
        strength,
        start,
        end,
        mode,
        mask,
        policy,
        compute,
        picture=to_pixels(image),
        encode=None if net.config.hint else lambda pixels: vae.encode(to_images(pixels)),
    )


def as_large_as(mask: Tensor, image: Tensor) -> Tensor:
    """A mask (B, 1, h, w) in the size of pictures (B, H, W, 3), as (B, H, W, 1)."""
    return F.interpolate(mask.float(), image.shape[1:3], mode="bilinear").movedim(1, -1)


class FluxFitControlNet:
    """Any FLUX.1 ControlNet."""

    DESCRIPTION = (
        "Opens a FLUX.1 ControlNet (InstantX and Shakker union models, jasperai, alimama, "
        "XLabs) and gives it a picture of the size to draw. Chains through its control input."
    )
    CATEGORY = CONTROLS
    FUNCTION = "make"
    RETURN_TYPES = (FLUX_CONTROL,)
    RETURN_NAMES = ("control",)
    OUTPUT_TOOLTIPS = ("For FluxSampler, or for the next ControlNet node.",)

    def __init__(self) -> None:
        self.opened = OpenedControl()

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": common_inputs(0.7)
            | {
                "mode": choice(
                    [NO_MODE, *UNION_MODES],
                    "What the picture is; union models alone ask.",
                    default=NO_MODE,
                )
            },
            "optional": optional_inputs()
            | {"mask": socket("MASK", "1 where to paint; for inpainting ControlNets.")},
        }

    def make(
        self,
        mode: str,
        control: Sequence[Control] | None = None,
        mask: Tensor | None = None,
        **common: Any,
    ):
        number = None if mode == NO_MODE else UNION_MODES[mode]
        if mask is not None:
            mask = mask.reshape(-1, 1, *mask.shape[-2:])
        made_control = make_control(self.opened, **common, mode=number, mask=mask)
        return ((*controls_of(control), made_control),)


class ControlNetUpscalerFP8:
    """The upscaler ControlNet."""

    DESCRIPTION = (
        "Enlarges a picture with a FLUX.1 upscaler ControlNet: the picture is enlarged, its blur "
        "is evened out by the tile pre-processing, and the sampler draws the detail. Wire the "
        "latent into FluxSampler for its size."
    )
    CATEGORY = CONTROLS
    FUNCTION = "make"
    SEARCH_ALIASES = ["upscale", "tile", "controlnet upscaler"]
    RETURN_TYPES = (FLUX_CONTROL, "LATENT", "IMAGE")
    RETURN_NAMES = ("control", "latent", "enlarged")
    OUTPUT_TOOLTIPS = (
        "For FluxSampler.",
        "The enlarged picture as latents: the size, and a start for denoise below 1.",
        "The enlarged picture itself, to compare with.",
    )

    def __init__(self) -> None:
        self.opened = OpenedControl()

    @classmethod
    def INPUT_TYPES(cls):
        common = common_inputs(0.7)
        return {
            "required": common
            | {
                "upscale_factor": number(
                    4.0, 1.0, 8.0, 0.25, "Sides grow by this; they are rounded to multiples of 16."
                ),
                "tile_blur": number(
                    1.0,
                    1.0,
                    16.0,
                    0.5,
                    "Tile pre-processing: the picture is first made this many times "
                    "smaller, so that its noise and artefacts go. 1 leaves it as it is.",
                ),
            },
            "optional": optional_inputs(),
        }

    def make(
        self,
        image: Tensor,
        upscale_factor: float,
        tile_blur: float,
        control: Sequence[Control] | None = None,
        **common: Any,
    ):
        enlarged = enlarge(image, upscale_factor, tile_blur)
        vae: HostVAE = common["vae"]
        made_control = make_control(self.opened, image=enlarged, **common)
        latent = vae.encode(enlarged) if made_control.net.config.hint else made_control.cond
        return ((*controls_of(control), made_control), {"samples": latent}, enlarged)


def enlarge(image: Tensor, factor: float, tile_blur: float) -> Tensor:
    """Pictures (B, H, W, 3) bicubically enlarged to sides that are multiples of 16."""
    height, width = (max(16, round(side * factor / 16) * 16) for side in image.shape[1:3])
    pixels = image.movedim(-1, 1)[:, :3].float()
    if tile_blur > 1:
        small = tuple(max(1, round(side / tile_blur)) for side in pixels.shape[-2:])
        pixels = F.interpolate(pixels, small, mode="area")
    pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return pixels.clamp(0, 1).movedim(1, -1)
