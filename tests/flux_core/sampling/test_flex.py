"""Flex.2: an inpainting picture, its mask and a control picture beside the noise."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from flux_core import Conditioning, FluxPipeline, load_text_encoders, load_vae
from flux_core.pocket import pocket_file
from flux_core.sampling.concat import extra_channels
from flux_core.sampling.conditioning import ControlPicture
from flux_core.sampling.latents import pack, standardise
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from tests import tiny_models

FLEX = dataclasses.replace(tiny_models.DEV, depth=8, depth_single_blocks=1, in_channels=196)
ROWS, COLUMNS = 4, 6


@pytest.fixture(scope="module")
def model():
    return tiny_models.flux_transformer(FLEX).requires_grad_(False)


@pytest.fixture
def read(model):
    """What the first layer was given at each step."""
    seen: list[torch.Tensor] = []
    handle = model.img_in.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    yield seen
    handle.remove()


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(**more) -> Conditioning:
    text = Conditioning(random(1, 5, tiny_models.CONTEXT), random(1, tiny_models.POOLED))
    return dataclasses.replace(text, **more)


def request(model, steps: int = 1, batch: int = 2, **more) -> DrawRequest:
    start = torch.zeros(batch, 16, ROWS, COLUMNS)
    return DrawRequest(model, conditioning(**more), start, SamplingSettings(steps=steps))


def expected_tokens(noisy, picture=None, keep=None, control=None):
    """As ai-toolkit puts them together: packed one by one, blank ones of zeros, a mask of ones.

    ``keep`` (B, 1, h, w) is 1 where the picture stays.
    """
    tokens = pack(noisy)
    blank = torch.zeros_like(tokens)
    inpaint = torch.cat([blank, torch.ones_like(tokens[:, :, :4])], dim=2)
    if picture is not None:
        inpaint = pack(torch.cat([standardise(picture) * keep, 1 - keep], dim=1))
    guide = blank if control is None else pack(control)
    return torch.cat([tokens, inpaint.expand(len(tokens), -1, -1), guide], dim=2)


def test_without_anything_it_draws_from_text_alone_and_says_nothing(model, read, caplog):
    drawn = request(model)
    sample(drawn)
    noisy = drawn.noise_schedule.sigmas[0] * drawn.noise_schedule.noise
    assert torch.equal(read[0], expected_tokens(noisy))
    assert not caplog.text


def test_picture_mask_and_control_stand_behind_the_noise_in_this_order(model, read):
    picture, control = random(1, 16, ROWS, COLUMNS, seed=1), random(2, 16, ROWS, COLUMNS, seed=2)
    mask = (torch.rand(1, 1, 8 * ROWS, 8 * COLUMNS) > 0.5).float()
    drawn = request(
        model, picture=picture, mask=mask, control=ControlPicture(control, strength=0.5)
    )
    sample(drawn)
    noisy = drawn.noise_schedule.sigmas[0] * drawn.noise_schedule.noise
    keep = F.interpolate(1 - mask, (ROWS, COLUMNS), mode="bilinear")
    expected = expected_tokens(noisy, picture, keep, 0.5 * standardise(control))
    assert read[0].shape[-1] == 196
    assert tiny_models.relative(read[0], expected) < 1e-6


def test_control_counts_for_its_span_alone(model, read):
    control = random(1, 16, ROWS, COLUMNS, seed=2)
    sample(request(model, steps=4, batch=1, control=ControlPicture(control, end=0.5)))
    guided = [bool(tokens[..., -64:].any()) for tokens in read]
    assert guided[0] and not guided[-1] and sorted(guided, reverse=True) == guided
    read.clear()
    sample(request(model, steps=4, batch=1, control=ControlPicture(control)))
    assert all(bool(tokens[..., -64:].any()) for tokens in read)


def test_sizes_are_brought_to_the_picture_s(model, read):
    control = ControlPicture(random(1, 16, 2 * ROWS, 2 * COLUMNS))
    sample(
        request(model, picture=random(1, 16, 3, 3), mask=torch.ones(1, 1, 5, 7), control=control)
    )
    assert read[0].shape[-1] == 196


def test_other_models_refuse_a_control_picture():
    other = tiny_models.flux_transformer().requires_grad_(False)
    control = ControlPicture(torch.zeros(1, 16, ROWS, COLUMNS))
    with pytest.raises(ValueError, match="a control picture is read by Flex.2 alone"):
        sample(request(other, control=control))


@pytest.mark.parametrize("wrong", [{"strength": float("nan")}, {"start": 0.7, "end": 0.2}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="a control picture's"):
        ControlPicture(torch.zeros(1, 16, 2, 2), **wrong)


class TestPipeline:
    @pytest.fixture(scope="class")
    @classmethod
    def pipeline(cls) -> FluxPipeline:
        encoders = load_text_encoders(
            pocket_file("text_encoders", "_clip_l"), pocket_file("text_encoders", "_t5")
        )
        widths = {"vec_in_dim": 192, "context_in_dim": 128}
        flex = tiny_models.flux_transformer(dataclasses.replace(FLEX, **widths))
        return FluxPipeline(flex.bfloat16(), encoders, load_vae(pocket_file("vae", "_vae")))

    def test_each_keyword_changes_the_picture(self, pipeline):
        assert extra_channels(pipeline.transformer.reads) == 33
        picture, mask = torch.rand(1, 32, 32, 3), torch.zeros(1, 32, 32)
        mask[:, :16] = 1

        def drawn(**more):
            return pipeline("a star", width=32, height=32, steps=2, **more).images

        plain = drawn()
        others = [
            drawn(condition=picture, condition_mask=mask),
            drawn(control_picture=picture),
            drawn(control_picture=picture, control_strength=0.5),
            drawn(control_picture=picture, control_end=0.1, cfg=2.0),
        ]
        assert not any(torch.equal(other, plain) for other in others)
        assert torch.equal(drawn(control_picture=picture, control_strength=0.0), plain)
        assert torch.equal(drawn(), plain)

    def test_what_it_would_not_see_is_refused(self, pipeline):
        picture = torch.zeros(1, 32, 32, 3)
        with pytest.raises(ValueError, match="there is no condition_mask"):
            pipeline("a star", width=32, height=32, condition=picture)
        for wrong in ({"control_strength": 2000}, {"control_end": 1.5}):
            with pytest.raises(ValueError, match="control"):
                pipeline("a star", width=32, height=32, control_picture=picture, **wrong)
        pocket = FluxPipeline.from_pocket()
        with pytest.raises(ValueError, match="a control picture is read by Flex.2 alone"):
            pocket("a star", width=32, height=32, control_picture=picture)
