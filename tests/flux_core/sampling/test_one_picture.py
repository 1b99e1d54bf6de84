"""One picture of a batch as a request of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from flux_core import Conditioning, Control, FluxControlNet, LoraRegion, LoraUse, OffloadPolicy
from flux_core.offload import OffloadRunner
from flux_core.sampling.conditioning import (
    AttentionBias,
    Region,
    RegionalPrompts,
)
from flux_core.sampling.one_picture import pictures_of, single_picture
from flux_core.sampling.references import References
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw
from tests import tiny_models
from tests.flux_core.sampling.lora_runs import low_rank

ROWS, COLUMNS, TEXT = 8, 6, 5
SIDE = TEXT + ROWS // 2 * (COLUMNS // 2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_rows(*shape: int, rows: tuple[int, ...], first: int = 0) -> Tensor:
    """Numbers (rows, ...) of which each row is its own."""
    return torch.cat([normal(1, *shape, seed=first + row) for row in rows])


def prompt(rows: tuple[int, ...], first: int = 0, **more: Any) -> Conditioning:
    context = of_rows(TEXT, tiny_models.CONTEXT, rows=rows, first=first)
    pooled = of_rows(tiny_models.POOLED, rows=rows, first=first + 50)
    return Conditioning(context, pooled, **more)


def masks(rows: tuple[int, ...], first: int = 0) -> Tensor:
    each = [of_rows(ROWS, COLUMNS, rows=(row,), first=first).sigmoid() for row in rows]
    return torch.cat(each)  # of all at once it would not be the same to the bit


def request(model, net, lora, rows: tuple[int, ...]) -> DrawRequest:
    """A request of so many pictures in which everything that can have a row each has one."""
    region = prompt(rows, 10, region=Region(mask=masks(rows, 20)))
    read = torch.cat([torch.arange(TEXT)[None] < 3 + row for row in rows])
    bias = AttentionBias(of_rows(SIDE, SIDE, rows=rows, first=30), ROWS // 2, COLUMNS // 2)
    first = prompt(
        rows,
        regional=RegionalPrompts([region]),
        references=References([of_rows(16, 4, 4, rows=rows, first=40)]),
        text_mask=read,
        attention=bias,
    )
    second = prompt(rows, 60, region=Region(mask=masks(rows, 70)))
    negative = prompt(rows, 80)
    settings = SamplingSettings(seed=3, steps=2, cfg=2.0, batch_index=rows)
    return DrawRequest(
        model,
        [first, second],
        of_rows(16, ROWS, COLUMNS, rows=rows, first=90),
        settings,
        negative=negative,
        mask=masks(rows, 100)[:, None],
        controls=[Control(net, of_rows(16, ROWS, COLUMNS, rows=rows, first=110), 0.5)],
        loras=[LoraUse(lora, 0.5, region=LoraRegion(masks(rows, 120)))],
    )


@pytest.fixture(scope="module")
def parts():
    model = tiny_models.flux_transformer(tiny_models.ONE_OF_EACH).requires_grad_(False)
    net = FluxControlNet(replace(tiny_models.UPSCALER, depth=1)).requires_grad_(False)
    return model, cast(FluxControlNet, tiny_models.randomise(net, 5)), low_rank(model)


def test_each_has_all_that_is_its_own(parts):
    """A batch on devices is what each of its pictures is alone, drawn as one of the batch."""
    runner = OffloadRunner(OffloadPolicy(devices="cpu"), "cpu")
    (batch,) = draw(runner, [request(*parts, (0, 1, 2))])
    for row in range(3):
        (alone,) = draw(OffloadRunner(None, "cpu"), [request(*parts, (row,))])
        assert torch.equal(alone[0], batch[row]), row
        assert row == 0 or not torch.equal(batch[row], batch[0])


def test_what_all_share_stays_and_one_alone_is_itself(parts):
    model, *_ = parts
    mask = normal(ROWS, COLUMNS).sigmoid()
    shared = DrawRequest(
        model, replace(prompt((0,)), region=Region(mask=mask)), torch.zeros(3, 16, ROWS, COLUMNS)
    )
    third = single_picture(shared, 2)
    assert torch.equal(third.positives[0].context, shared.positives[0].context)
    assert third.positives[0].region.mask is mask and third.latents.shape[0] == 1
    assert torch.equal(third.noise_schedule.noise[0], shared.noise_schedule.noise[2])
    one = replace(shared, latents=torch.zeros(1, 16, ROWS, COLUMNS))
    assert pictures_of(one) == [one]
