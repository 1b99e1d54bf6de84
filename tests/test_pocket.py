"""The pocket model's files, and the judge that scores it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from flux_core import FluxPipeline, load_lora
from flux_core.checkpoint.reader import open_source
from flux_core.pocket import POCKET, pocket_file
from tools.pocket import cache, captions, score, score_edit, score_redux, train_redux
from tools.pocket.checker import look
from tools.pocket.degrade import degrade
from tools.pocket.edits import COLOUR
from tools.pocket.scenes import SHAPES, draw, is_held_out, random_scene

ADAPTERS = {"clip_vision": "_siglip", "style_models": "_redux", "loras": "_edit"}


def test_all_files_together_are_small():
    assert sum(p.stat().st_size for p in POCKET.rglob("*") if p.is_file()) <= 48 * 2**20


@pytest.mark.parametrize(("folder", "suffix"), ADAPTERS.items())
def test_each_adapter_is_small(folder, suffix):
    files = list((POCKET / folder).iterdir())
    assert files == [pocket_file(folder, suffix)]
    assert files[0].stat().st_size < 4 * 10**6


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


def test_the_vision_encoder_and_redux_are_of_the_sizes_that_are_trained():
    from flux_core import load_redux, load_vision_encoder

    vision = load_vision_encoder(pocket_file("clip_vision", "_siglip"))
    redux = load_redux(pocket_file("style_models", "_redux"))
    assert (vision.config, redux.config) == (train_redux.VISION, train_redux.REDUX)


def test_a_sentence_about_a_picture_says_all_in_words_that_t5_knows():
    """One token a word and one for the end, as many as a picture has."""
    encoders = cache.open_encoders()[0]
    rng = random.Random(4)
    for _ in range(100):
        scene = random_scene(rng)
        text = train_redux.sentence(scene)
        for thing in scene.things:
            named = f"{thing.size} {thing.colour} {thing.shape}"
            assert named in text and all(w in text for w in thing.place.split())
        assert text.endswith(f"{scene.background} background")
        tokens = encoders.tokenizers.t5([text]).input_ids[0]
        assert len(tokens) == len(text.split()) + 1


def test_drawings_by_a_picture_have_its_colours_and_the_shape_that_words_name():
    """Some of the score's pictures, drawn with another shape beside them."""
    variations = score_redux.Variations()
    coloured = right = 0
    for seed, (scene, picture) in enumerate(score_redux.pictures(50)[:3]):
        wanted = score_redux.other_shape(scene)
        assert wanted.things[0].shape != scene.things[0].shape
        drawn = variations.draw(picture, seed, f"a {wanted.things[0].shape}", steps=14)
        coloured += score.has_colours(drawn, wanted)
        right += score.is_right(drawn, wanted)
    assert coloured >= 2 and right >= 2


def test_a_few_edits_are_as_their_sentences_say():
    """Some of the score's edits; without the LoRA none of them is right."""
    pipeline, lora = (
        FluxPipeline.from_pocket(device="cpu"),
        load_lora(pocket_file("loras", "_edit")),
    )
    options = {"kind": COLOUR, "count": 3, "steps": 10, "cfg": 1.0}
    assert score_edit.score(pipeline, [(lora, 1.0)], **options)[0] >= 2
    assert score_edit.score(pipeline, [(lora, 0.0)], **options | {"steps": 4})[0] == 0
