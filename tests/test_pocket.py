"""The pocket model's files, and the judge that scores it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from flux_core import FluxPipeline
from flux_core.checkpoint.reader import open_source
from flux_core.pocket import POCKET
from tools.pocket import captions, score
from tools.pocket.checker import look
from tools.pocket.degrade import degrade
from tools.pocket.scenes import SHAPES, draw, is_held_out, random_scene


def test_all_files_together_are_small():
    assert sum(p.stat().st_size for p in POCKET.rglob("*") if p.is_file()) <= 48 * 2**20


def test_it_has_flux_s_rotary_axes_and_guidance():
    from flux_core import load_transformer

    config = load_transformer(POCKET / "diffusion_models" / "fluxfit_pocket.safetensors").config
    assert config.axes_dim == (16, 56, 56) and config.guidance_embed
    assert config.in_channels == 64


def test_weights_are_finite():
    for path in POCKET.rglob("*.safetensors"):
        source = open_source(path)
        assert all(source.read(name).float().isfinite().all() for name in source.entries)


def test_training_never_shows_a_held_out_triple():
    rng = random.Random(1)
    for _ in range(500):
        scene = random_scene(rng)
        assert not any(is_held_out(t.shape, t.colour, scene.background) for t in scene.things)


@pytest.mark.parametrize("things", [1, 2])
def test_the_checker_knows_right_from_wrong(things):
    """On drawn pictures, where the truth is known; never on the model's."""
    asked = score.prompts(60, things)
    rng = random.Random(0)
    pictures = [draw(scene, 256, rng) for _, scene in asked]
    assert all(score.is_right(p, s) for p, (_, s) in zip(pictures, asked, strict=True))
    shifted = zip(pictures, asked[1:] + asked[:1], strict=True)
    same = sum(score.is_right(p, s) for p, (_, s) in shifted)
    assert same <= 3


def test_the_checker_sees_every_shape_and_refuses_blots():
    rng = random.Random(2)
    seen = set()
    while len(seen) < len(SHAPES):
        scene = random_scene(rng, 1)
        _, things = look(draw(scene, 256, rng))
        assert [t.shape for t in things] == [scene.things[0].shape]
        seen.add(things[0].shape)
    blot = np.full((256, 256, 3), 255, np.uint8)
    blot[60:64, 20:200] = blot[60:200, 20:24] = (220, 30, 35)
    _, things = look(blot)
    assert [t.shape for t in things] == [None]


def test_captions_say_what_they_report():
    rng = random.Random(3)
    for _ in range(300):
        scene = random_scene(rng)
        caption = captions.describe(scene, rng)
        lower = caption.text.lower()
        for i, thing in enumerate(scene.things):
            assert thing.colour in lower
            assert any(w in lower for w in captions.SHAPE_WORDS[thing.shape])
            assert caption.answers[f"colour{i}"] == thing.colour
        if caption.answers["background"] != captions.UNSAID:
            assert scene.background in lower


def test_degrading_makes_a_quarter_of_the_side_and_keeps_flat_colours():
    flat = torch.full((1, 64, 64, 3), 0.3)
    small = degrade(flat)
    assert small.shape == (1, 16, 16, 3) and torch.allclose(small, flat[:, :16, :16])


def test_a_few_sentences_are_drawn_as_they_say():
    """Some of the score's sentences, shape and both colours, by the checker."""
    pipeline = FluxPipeline.from_pocket(device="cpu")
    asked = score.prompts(100, 1)[:6]
    right = sum(
        score.is_right(score.drawn(pipeline, text, seed, steps=20), scene)
        for seed, (text, scene) in enumerate(asked)
    )
    assert right >= 4
