"""A large picture in two runs: small, where the model composes best; enlarged; and drawn again.

The second run begins at ``denoise`` of its schedule with the enlarged picture, so that it changes
detail and keeps the composition. Its sigmas are those of the larger size, as far as the shift
depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bounds import brief, check_number
from ..lora import lora_applied
from ..models.families import family_of
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from ..models.transformer import FluxTransformer
from ..offload import OffloadRunner
from ..offload.plan import Plan
from ..offload.turns import turn_of
from ..units import readable_bytes
from .adapters import made_ready
from .conditioning import Conditioning, Control
from .fitting import check_control
from .images import to_images, to_pixels
from .run import DrawRequest, StepCallback, draw, with_fitting_controls
from .sigmas import check_steps
from .stitch import resized
from .tiles import Tiling, check_tiling

LATENT = "latent "
#: How a picture is enlarged: its pixels, or its latents, which is fast and needs more denoising.
ENLARGE = (
    "bicubic",
    "nearest-exact",
    LATENT + "bicubic",
    LATENT + "bilinear",
    LATENT + "nearest-exact",
)
#: Between latents (B, C, h, w) and pixels (B, 3, H, W) in [-1, 1].
Convert = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Hires:
    """The second run.

    Args:
        scale: sides grow by this; they are rounded to whole tokens.
        denoise: share of the schedule that is drawn, above 0.
        steps: of the second run; None is as many as of the first.
        enlarge: one of ``ENLARGE``.
        tiles: windows in which the second run is drawn.
        controls: ControlNets of the second run alone; they see the enlarged picture in the place of
            their own, as an upscaler does.

    Raises ``ValueError`` for what is out of range.
    """

    scale: float = 2.0
    denoise: float = 0.5
    steps: int | None = None
    enlarge: str = ENLARGE[0]
    tiles: Tiling | None = None
    controls: Sequence[Control] = ()

    def __post_init__(self) -> None:
        check_number(self.scale, "the scale of hires", 1, 16)
        check_steps("simple", 1 if self.steps is None else self.steps, self.denoise)
        if self.enlarge not in ENLARGE:
            raise ValueError(
                f"enlarge is {brief(self.enlarge)}, expected one of {', '.join(ENLARGE)}"
            )
        check_tiling(self.tiles)
        if not isinstance(self.controls, Sequence):
            raise ValueError(f"controls has {brief(self.controls)}, expected a list of Control")
        for control in self.controls:
            check_control(control)

    @property
    def reads_pixels(self) -> bool:
        """Whether the first run's picture is decoded."""
        return bool(self.controls) or not self.enlarge.startswith(LATENT)

    def larger(
        self, height: int, width: int, geometry: TokenGeometry = FLUX1_TOKENS
    ) -> tuple[int, int]:
        """Sides of the second run's latents, for those of the first."""
        patch = geometry.patch
        rows, columns = (
            max(1, round(side * self.scale / patch)) * patch for side in (height, width)
        )
        return rows, columns


def second_request(
    first: DrawRequest, drawn: Tensor, hires: Hires, decode: Convert, encode: Convert
) -> DrawRequest:
    """The request of the second run.

    Args:
        first: of the first run.
        drawn: its raw latents (B, C, h, w).
        decode, encode: raw latents (B, C, h, w) to pixels (B, 3, H, W) in [-1, 1], and back; they
            are called where ``hires`` needs them.
    """
    size, pixels = larger_size(first, hires), None
    if hires.reads_pixels:
        side = first.vae.compression
        pixels = enlarged(decode(drawn), side * size[0], side * size[1], hires.enlarge)
    if pixels is not None and not hires.enlarge.startswith(LATENT):
        latents = encode(pixels)
    else:
        latents = F.interpolate(drawn, size, mode=hires.enlarge.removeprefix(LATENT))
    controls = []
    for control in hires.controls:
        assert pixels is not None
        cond = pixels if control.net.config.hint else encode(pixels)
        controls.append(replace(control, cond=cond, picture=pixels, encode=encode))
    return larger_request(first, hires, latents, [*first.controls, *controls])


def larger_size(first: DrawRequest, hires: Hires) -> tuple[int, int]:
    """Sides of the second run's latents."""
    height, width = first.latents.shape[-2:]
    return hires.larger(height, width, family_of(first.transformer).tokens)


def larger_request(
    first: DrawRequest, hires: Hires, latents: Tensor, controls: Sequence[Control]
) -> DrawRequest:
    """The first run's request for raw latents (B, C, h, w) to begin with, and for ControlNets of
    that size."""
    height, width = first.latents.shape[-2:]
    settings = replace(
        first.settings,
        steps=first.settings.steps if hires.steps is None else hires.steps,
        denoise=hires.denoise,
        sigmas=None,
        add_noise=True,
    )
    mask = first.mask
    if mask is not None:
        mask = F.interpolate(mask, latents.shape[-2:], mode="bilinear")
    return replace(
        first,
        positive=[in_shares(prompt, height, width) for prompt in first.positives],
        negative=None
        if first.negatives is None
        else [in_shares(prompt, height, width) for prompt in first.negatives],
        latents=latents,
        settings=settings,
        mask=mask,
        controls=controls,
        tiles=hires.tiles,
    )


def outlined_second(first: DrawRequest, hires: Hires) -> DrawRequest:
    """The request of the second run as far as it is known before the first: all but what is in
    latents and in ControlNets' conditions, which take no memory here."""
    size, batch, side = larger_size(first, hires), len(first.latents), first.vae.compression
    latents = torch.zeros(()).expand(batch, first.latents.shape[1], *size)
    pixels = torch.zeros(()).expand(batch, 3, side * size[0], side * size[1])
    controls = []
    for control in first.controls:
        if control.scales and control.picture is not None:
            control = replace(control, cond=latents[: len(control.picture)], picture=None)
        controls.append(control)
    for control in hires.controls:
        cond = pixels if control.net.config.hint else latents
        controls.append(replace(control, cond=cond, picture=None))
    return larger_request(first, hires, latents, controls)


def check_runs(runner: OffloadRunner, first: DrawRequest, hires: Hires) -> None:
    """Plan both runs before anything is drawn, the first one's ControlNets being of its size.

    Raises ``ValueError`` for what either cannot draw, and where the second has no room in memory,
    however its weights are streamed.
    """
    plan_draw(runner, first)
    second = outlined_second(first, hires)
    plan = plan_draw(runner, second)
    if plan.budget is not None and plan.least > plan.budget:
        height, width = (first.vae.compression * n for n in second.latents.shape[-2:])
        raise ValueError(
            f"the second run, {width}x{height} pixels, needs {readable_bytes(plan.least)} at least "
            f"and has {readable_bytes(plan.budget)}: draw it in tiles, or at a smaller scale"
        )


def check_vae(transformer: FluxTransformer, hires: Hires, channels: int | None) -> None:
    """Raise ``ValueError`` for a VAE whose latents of so many ``channels`` are not the model's,
    where the second run asks it; None is not known."""
    family = family_of(transformer)
    wanted = family.vae.latent_channels
    if hires.reads_pixels and channels not in (None, wanted):
        raise ValueError(
            f"the VAE has latents of {channels} channels, {family.name} takes {wanted}: they do "
            "not belong together"
        )


def plan_draw(runner: OffloadRunner, request: DrawRequest) -> Plan:
    """What a run would do, without doing it; errors as ``draw`` has them."""
    modules = request.modules
    with turn_of(*modules), torch.no_grad(), lora_applied(request.transformer, request.loras):
        return runner.plan(modules, request.work, request.policies)


def enlarged(pixels: Tensor, height: int, width: int, how: str) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] in a larger size."""
    if how.endswith("nearest-exact"):
        return F.interpolate(pixels.float(), (height, width), mode="nearest-exact")
    return to_pixels(resized(to_images(pixels), height, width))


def in_shares(prompt: Conditioning, height: int, width: int) -> Conditioning:
    """A prompt whose areas are in shares of a picture of ``height`` x ``width`` latents, so that it
    is the same part of a larger one."""
    region, regional = prompt.region, prompt.regional
    if regional is not None:
        parts = tuple(in_shares(part, height, width) for part in regional.prompts)
        prompt = replace(prompt, regional=replace(regional, prompts=parts))
    if region.area is None or region.shares:
        return prompt
    sides = (height, width, height, width)
    area = tuple(place / side for place, side in zip(region.area, sides, strict=True))
    return replace(prompt, region=replace(region, area=area, shares=True))


def draw_twice(
    runner: OffloadRunner,
    request: DrawRequest,
    hires: Hires,
    decode: Convert,
    encode: Convert,
    callback: StepCallback | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw a request, and draw it again larger.

    Returns raw latents (B, C, h, w) of both runs. Steps are counted over both; arguments and errors
    as ``draw`` and ``second_request`` have them, those of ``check_runs`` before the first step.
    """
    request = with_fitting_controls(request)
    if request.adapters:
        request = replace(request, adapters=made_ready(runner, request.adapters))
    check_runs(runner, request, hires)
    more = request.settings.steps if hires.steps is None else hires.steps
    total = request.steps + more

    def step(before: int) -> StepCallback:
        def report(number: int, _: int, denoised: Tensor) -> None:
            if callback is not None:
                callback(before + number, total, denoised)

        return report

    (small,) = draw(runner, [request], callback=step(0))
    again = second_request(request, small, hires, decode, encode)
    (large,) = draw(runner, [again], callback=step(request.steps))
    return small, large
