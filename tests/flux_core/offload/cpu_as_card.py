"""The CPU with memory of its own, as a card has it, and what is drawn there."""

from __future__ import annotations

from functools import partial

import torch

from flux_core import Conditioning, OffloadPolicy
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.placement import placement_of
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample

CPU = torch.device("cpu")


SIDE = 48  # latents: 576 tokens


#: The CPU with memory of its own: weights are copied there, and no copy lane runs ahead.
card_policy = partial(OffloadPolicy, separate_memory=True)


placement_on_card = partial(placement_of, separate=True)


def drawn_on_card(model, runner: OffloadRunner) -> tuple[torch.Tensor, int, int]:
    """Latents, the plan's peak, and the bytes that an allocator counted at most."""
    generator = torch.Generator().manual_seed(0)
    text = Conditioning(
        torch.randn(1, 40, 48, generator=generator), torch.randn(1, 32, generator=generator)
    )
    start = torch.zeros(1, 16, SIDE, SIDE)
    request = DrawRequest(model, text, start, SamplingSettings(steps=2))
    counted = LiveBytes()
    plans = []

    def draw(plan):
        plans.append(plan)
        return sample(request)

    with counted:
        latents = runner.run("transformer", [model], draw, request.work)
    return latents, plans[-1].peak, counted.peak
