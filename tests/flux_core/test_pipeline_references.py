"""References in the pipeline, on the pocket model."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from flux_core import FluxPipeline

SMALL = {"width": 64, "height": 48, "steps": 2, "reference_size": "own"}
PROMPT = "make it blue"


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return FluxPipeline.from_pocket(device="cpu", policy="component")


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, height, width, 3, generator=torch.Generator().manual_seed(seed))


def draw(pipeline, **options) -> torch.Tensor:
    return pipeline(PROMPT, **{**SMALL, **options}).images


def test_a_picture_a_list_and_pil_are_one(pipeline):
    image = Image.new("RGB", (48, 32), (255, 0, 0))
    tensor = torch.zeros(1, 32, 48, 3)
    tensor[..., 0] = 1
    expected = draw(pipeline, reference=tensor)
    assert torch.equal(draw(pipeline, reference=[tensor]), expected)
    assert torch.equal(draw(pipeline, reference=image), expected)
    assert not torch.equal(draw(pipeline, reference_size="preferred"), expected)
    assert not torch.equal(draw(pipeline, reference=[image, image]), expected)


def test_it_counts_for_both_prompts_and_is_encoded_once(pipeline):
    drawn = pipeline(PROMPT, cfg=2.0, reference=[picture(32, 32), picture(48, 32, 1)], **SMALL)
    parts = list(drawn.report.parts)
    assert parts == ["text encoders", "VAE encoder", "transformer", "VAE decoder"]
    weak = {"cfg": 0.0, "negative_prompt": "a red circle"}  # nothing but the negative prompt
    references = [draw(pipeline, reference=picture(32, 32, n), **weak) for n in range(2)]
    assert not torch.equal(*references)


@pytest.mark.parametrize("attention", ["joint", "self"])
def test_batches_and_options(pipeline, attention):
    options = {"batch_size": 2, "reference_attention": attention, "reference_method": "index"}
    shared = draw(pipeline, reference=picture(32, 32), **options)
    each = draw(pipeline, reference=picture(32, 32, 3, batch=2), **options)
    assert shared.shape == each.shape == (2, 48, 64, 3) and not torch.equal(shared, each)


def test_the_drawn_size(pipeline):
    scaled = draw(pipeline, reference=picture(20, 30), reference_size="drawn")
    assert scaled.shape == (1, 48, 64, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "cat.png"}, "reference: cat.png: no such file"),
        ({"reference": []}, "empty list"),
        ({"reference_method": "beside"}, "reference method is 'beside'"),
        ({"reference_attention": None}, "reference attention is None"),
        ({"reference_size": "huge"}, "reference_size is 'huge'"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        draw(pipeline, **({"reference": picture(32, 32)} | options))
