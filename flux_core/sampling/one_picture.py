"""One picture of a batch as a request of its own: of all that has a row a picture, its row.

Products of many rows and of few do not sum in the same order on all machines, so that what a
picture becomes depends a little on how many stand beside it. Devices that share a batch draw each
picture by itself, and it is the same to the bit on however many of them.

Axis letters: B pictures; rows are 1, for all pictures, or B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ..lora import LoraStack, LoraUse, lora_uses
from .adapters import AppliedAdapter
from .conditioning import Conditioning, Control
from .request import DrawRequest
from .settings import NoiseSchedule


def pictures_of(request: DrawRequest) -> list[DrawRequest]:
    """Each picture of a request, in their order; of one alone the request itself."""
    batch = len(request.latents)
    return [request] if batch == 1 else [single_picture(request, row) for row in range(batch)]


def single_picture(request: DrawRequest, row: int) -> DrawRequest:
    """The picture of a row of a batch; its noise and sigmas are those that it has there."""
    negatives, settings = request.negatives, request.settings
    if settings.batch_index is not None:
        settings = replace(settings, batch_index=[settings.batch_index[row]])
    one = replace(
        request,
        positive=[prompt_row(prompt, row) for prompt in request.positives],
        negative=None if negatives is None else [prompt_row(prompt, row) for prompt in negatives],
        latents=request.latents[row : row + 1],
        settings=settings,
        mask=row_of(request.mask, row),
        controls=[control_row(control, row) for control in request.controls],
        loras=loras_row(request.loras, row),
        adapters=[adapter_row(applied, row) for applied in request.adapters],
    )
    noise, sigmas, table = request.noise_schedule
    one.__dict__["noise_schedule"] = NoiseSchedule(noise[row : row + 1], sigmas, table)
    return one


def row_of(x: Tensor | None, row: int) -> Tensor | None:
    """The row of x (1 or B, ...) that a picture reads, (1, ...), as ``expand`` counts them."""
    return None if x is None else x[row % len(x)][None]


def one_row(x: Tensor, row: int) -> Tensor:
    """``row_of`` of what is there, (1, ...)."""
    return x[row % len(x)][None]


def prompt_row(prompt: Conditioning, row: int) -> Conditioning:
    """A prompt as one picture reads it."""
    region, references, attention = prompt.region, prompt.references, prompt.attention
    control, regional = prompt.control, prompt.regional
    if region.mask is not None and region.mask.ndim > 2:
        region = replace(region, mask=row_of(region.mask, row))
    if references is not None:
        references = replace(references, latents=[one_row(z, row) for z in references.latents])
    if attention is not None and attention.values.ndim > 2:
        attention = replace(attention, values=one_row(attention.values, row))
    if control is not None:
        control = replace(control, latents=one_row(control.latents, row))
    if regional is not None:
        prompts = tuple(prompt_row(each, row) for each in regional.prompts)
        regional = replace(regional, prompts=prompts)
    return replace(
        prompt,
        context=one_row(prompt.context, row),
        pooled=row_of(prompt.pooled, row),
        picture=row_of(prompt.picture, row),
        mask=row_of(prompt.mask, row),
        region=region,
        references=references,
        attention=attention,
        text_mask=row_of(prompt.text_mask, row),
        control=control,
        regional=regional,
    )


def control_row(control: Control, row: int) -> Control:
    """A ControlNet's condition for one picture; it fits already."""
    return replace(
        control,
        cond=one_row(control.cond, row),
        mask=row_of(control.mask, row),
        picture=None,
        encode=None,
    )


def loras_row(loras: LoraStack, row: int) -> Sequence[LoraUse]:
    """LoRAs with the masks of one picture."""
    uses = []
    for use in lora_uses(loras):
        region = use.region
        if region is not None:
            region = replace(region, mask=one_row(region.mask, row))
        uses.append(LoraUse(use.lora, use.strength, use.blocks, use.schedule, region))
    return uses


def adapter_row(applied: AppliedAdapter, row: int) -> AppliedAdapter:
    """An IP-Adapter with the mask of one picture."""
    return replace(applied, mask=row_of(applied.mask, row))
