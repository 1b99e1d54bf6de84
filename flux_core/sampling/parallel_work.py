"""What one of several devices takes for its shares of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ..offload import Work
from .kept import work_of_keeping
from .one_picture import single_picture
from .picture_work import latent_bytes, picture_work, waiting_bytes
from .request import META, DrawRequest
from .samplers import SAMPLERS
from .shares import Share


class PictureCost(NamedTuple):
    """What a picture of a batch takes: while it is drawn, and bytes while another one is.

    ``ours`` and ``theirs`` are counts of references that attend to themselves alone, of the
    positive prompt and of the negative one.
    """

    work: Work
    waiting: int
    ours: list[int]
    theirs: list[int]


class RunCosts:
    """What the pictures of a request take; those of one size are counted once."""

    def __init__(self, request: DrawRequest) -> None:
        self.request = request
        self.known: dict[int, PictureCost] = {}
        prompts = (*request.positives, *(request.negatives or ()))
        #: whether places, and with them sizes, are each picture's own
        self.unlike = any(prompt.region.mask_bounds for prompt in prompts)

    def of(self, row: int) -> PictureCost:
        """What the picture of a row takes."""
        row = row if self.unlike else 0
        if row not in self.known:
            self.known[row] = self.counted(row)
        return self.known[row]

    def counted(self, row: int) -> PictureCost:
        request = self.request
        picture = request if len(request.latents) == 1 else single_picture(request, row)
        nets = [control.net for control in request.controls]
        sampler, sigmas = SAMPLERS[request.settings.sampler], request.noise_schedule.sigmas
        denoiser = picture.denoiser(META, picture.lora_factors(META))
        ours, theirs = (
            [prompt.side.count for prompt in prompts if prompt.side is not None]
            for prompts in (denoiser.positive, denoiser.negative or [])
        )
        waiting = waiting_bytes(denoiser, nets, sigmas)
        work = picture_work(denoiser, nets, sampler, sigmas, picture.mask)
        return PictureCost(work, waiting, ours, theirs)

    def share_work(self, shares: Sequence[Share], first: bool) -> Work:
        """The work of a device that draws some shares of each step, picture by picture.

        ``first``: the device has the sampler too, and so the latents of all pictures.
        """
        request, batch = self.request, len(self.request.latents)
        costs = [self.of(row) for row in dict.fromkeys(share.row for share in shares)]
        most = max(costs, key=lambda cost: cost.work.activations)
        size = most.work.activations + sum(cost.waiting for cost in costs) - most.waiting
        if first and batch > 1:  # one picture's are counted with it
            sampler, sigmas = SAMPLERS[request.settings.sampler], request.noise_schedule.sigmas
            shape, mask = request.latents.shape, request.mask
            size += latent_bytes(sampler, sigmas, shape, mask) * (batch - 1) // batch
        sides: list[int] = []
        for share in shares:
            cost = self.of(share.row)
            sides += cost.theirs if share.negative else cost.ours
        work = replace(most.work, activations=size)
        return work_of_keeping(work, request.transformer, sides, 1)
