"""What the pocket edit LoRA is trained on and scored by."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from flux_core.sampling.latents import pack
from tools.pocket import score_edit, train_edit
from tools.pocket.edits import COLOUR, KINDS, drawn_alike, editable_scene, random_edit, shows
from tools.pocket.train_transformer import canvas_ids


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_shows_in_the_picture_and_its_undoing_takes_it_back(kind):
    rng = random.Random(kind)
    for i in range(8):
        scene = editable_scene(rng, things=1 + i % 2)
        edit = random_edit(scene, rng, kind)
        edited = edit.apply(scene)
        before, after = drawn_alike([scene, edited], 256, str(i))
        assert shows(after, edited) and not shows(before, edited)
        assert shows(before, scene) and not shows(after, scene)
        assert edit.undo(scene).apply(edited) == scene
        if kind != "shape":
            assert edit.value in edit.sentence(scene, rng).lower()


def test_scored_edits_lead_to_scenes_that_training_never_shows():
    for text, scene, edited in score_edit.cases(10, COLOUR):
        assert edited.held_out and text and scene.things != edited.things
    for index in range(30):
        _, _, after = train_edit.family(index, COLOUR)
        assert not any(scene.held_out for scene in after)


class Counted:
    """Encoders that say of a text how long it is."""

    def encode(self, texts):
        from flux_core.sampling.conditioning import Conditioning

        length = float(len(texts[0]))
        return Conditioning(torch.full((1, 5, 128), length), torch.full((1, 192), length), 1.0)


def test_a_batch_is_windows_of_both_pictures_at_one_place():
    """Latents say where they are: channel 0 the row, 1 the column, 2 which of the family."""
    side, size, count = 32, 8, 6
    rows = torch.arange(side).view(1, 1, side, 1).expand(4, 4, side, side)
    columns = rows.transpose(2, 3)
    number = torch.arange(4).view(1, 4, 1, 1).expand(4, 4, side, side).clone()
    number[..., : side // 2, :] = 0  # edits change the lower half alone
    latents = torch.zeros(4, 4, 16, side, side)
    for channel, values in enumerate((rows, columns, number)):
        latents[:, :, channel] = values
    sentences = train_edit.Sentences(Counted())
    inputs = train_edit.batch(latents, sentences, COLOUR, size, 3, count)
    tokens = size * size
    t = inputs["timesteps"][:, None, None]
    x = inputs["img"][:, :tokens] - t * inputs["target"]
    reference = inputs["img"][:, tokens:]
    same = [i for i in range(64) if not 8 <= i < 12]  # pack: channels slowest, four places each
    assert torch.allclose(x[..., same], reference[..., same], atol=1e-4)
    weight = inputs["weight"][..., 0]
    changed = (x - reference).abs().amax(-1) > 0.5
    assert changed.any(1).all() and not changed.all()
    heavy, light = weight[changed], weight[~changed]
    assert torch.allclose(heavy / light.mean(), torch.tensor(1 + train_edit.CHANGED), atol=1e-4)
    assert np.isclose(weight.mean(), 1, atol=1e-5)
    here, there = inputs["img_ids"].split(tokens, dim=1)
    assert torch.equal(here[..., 1:], there[..., 1:])
    assert set(here[..., 0].flatten().tolist()) == {0.0}
    assert set(there[..., 0].flatten().tolist()) == {1.0}
    places = pack(latents[:1, 0])[0][:, [0, 4]] / 2  # row and column of each token's first corner
    pairs = zip(places.tolist(), canvas_ids(side)[:, 1:].tolist(), strict=True)
    by_place = {tuple(place): ids for place, ids in pairs}
    corners = reference[..., [0, 4]] / 2
    for corner, ids in zip(corners.flatten(0, 1), here[..., 1:].flatten(0, 1), strict=True):
        assert by_place[tuple(corner.tolist())] == ids.tolist()


def test_half_of_the_times_are_nearly_noise():
    t = train_edit.noisy_timesteps(4000, torch.Generator().manual_seed(0))
    assert t.shape == (4000,) and t.min() > 0 and t.max() <= 1
    share = (t > train_edit.NOISIEST).float().mean()
    assert 0.5 < share < 0.7
