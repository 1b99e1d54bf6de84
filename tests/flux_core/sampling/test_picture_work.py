"""What a run takes is counted at every step that reads something else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flux_core import Conditioning, OffloadPolicy
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.sampling.conditioning import Region, RegionalOptions, RegionalPrompts
from flux_core.sampling.guidance import GuidanceOptions
from flux_core.sampling.hires import in_shares
from flux_core.sampling.nag import NormalizedAttentionGuidance
from flux_core.sampling.references import References
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw
from flux_core.sampling.tiles import Tiling
from tests import tiny_models

SIDE = 24


def prompt(text: int = 8, **options: Any) -> Conditioning:
    context = torch.full((1, text, tiny_models.CONTEXT), 0.1)
    return Conditioning(context, torch.zeros(1, tiny_models.POOLED), **options)


def regional(level: float) -> RegionalPrompts:
    half = Region((1.0, 0.5, 0.0, 0.0), shares=True)
    return RegionalPrompts((prompt(300, region=half),), RegionalOptions(share=level))


def late_negative() -> dict[str, Any]:
    options = GuidanceOptions(start=0.5)
    return {
        "negative": prompt(400),
        "settings": SamplingSettings(steps=8, cfg=2.0, guidance_options=options),
    }


#: What begins after the first steps, or leaves the first steps out.
LATE: dict[str, dict[str, Any]] = {
    "nothing late": {},
    "zero steps": {
        "settings": SamplingSettings(steps=8, guidance_options=GuidanceOptions(zero_steps=4))
    },
    "negative": late_negative(),
    "longer prompt": {"positive": [prompt(end=0.5), prompt(400, start=0.5)]},
    "references": {
        "positive": [
            prompt(end=0.5),
            prompt(start=0.5, references=References([torch.zeros(1, 16, 40, 40)])),
        ]
    },
    "one late prompt": {"positive": prompt(400, start=0.5)},
    "regions early": {"positive": prompt(regional=regional(0.3))},
    "NAG late": {
        "negative": prompt(400),
        "settings": SamplingSettings(
            steps=8, guidance_options=GuidanceOptions(nag=NormalizedAttentionGuidance(start=0.7))
        ),
    },
    "tiles by a late mask": {
        "tiles": Tiling(96, 32),
        "mask": torch.full((1, 1, SIDE, SIDE), 0.3),
        "differential": 1.0,
    },
}


@pytest.mark.parametrize("case", LATE)
def test_what_begins_late_is_in_the_plan(case):
    transformer = tiny_models.flux_transformer().requires_grad_(False)
    options = {"positive": prompt(), "settings": SamplingSettings(steps=8)} | LATE[case]
    request = DrawRequest(transformer, latents=torch.zeros(1, 16, SIDE, SIDE), **options)
    runner = OffloadRunner(OffloadPolicy("component", separate_memory=True), "cpu")
    with LiveBytes() as counted:
        draw(runner, [request])
    predicted = runner.report.parts["transformer"].predicted
    assert counted.peak == pytest.approx(predicted, rel=0.05)
    assert request.work.image_tokens > 0


def test_regions_in_latents_stay_where_they_are_in_a_second_larger_run():
    area = Region((SIDE, SIDE // 2, 0, 0))
    positive = prompt(regional=RegionalPrompts((prompt(region=area),)))
    larger = in_shares(positive, SIDE, SIDE)
    assert larger.regional is not None
    (region,) = larger.regional.prompts
    assert (region.region.area, region.region.shares) == ((1.0, 0.5, 0.0, 0.0), True)
