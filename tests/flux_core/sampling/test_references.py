"""Reference latents as tokens: where they stand, and what they change."""

from __future__ import annotations

import pytest
import torch

from flux_core import Conditioning
from flux_core.sampling.references import References, places, reference_tokens
from flux_core.sampling.run import DrawRequest
from tests import tiny_models


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # the second is wider than high once it stands below the first, so it goes below
        ("offset", [(1.0, 0, 0), (1.0, 0, 6), (1.0, 8, 0)]),
        ("index", [(1.0, 0, 0), (2.0, 0, 0), (3.0, 0, 0)]),
        ("index_timestep_zero", [(1.0, 0, 0), (2.0, 0, 0), (3.0, 0, 0)]),
        ("uxo", [(0.0, 8, 10), (0.0, 16, 16), (0.0, 24, 20)]),
    ],
)
def test_places(method, expected):
    assert places([(8, 6), (8, 4), (2, 6)], method, 8, 10) == expected


def test_tokens_and_positions():
    latents = [torch.randn(1, 16, 8, 6), torch.randn(1, 16, 5, 4)]
    tokens, ids = reference_tokens(latents, "index", 8, 8, 3)
    assert tokens.shape == (3, 4 * 3 + 3 * 2, 64) and ids.shape == (18, 3)
    assert ids[0].tolist() == [1, 0, 0] and ids[-1].tolist() == [2, 2, 1]


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="reference method is 'beside', expected one of offset"):
        References([], "beside")
    with pytest.raises(ValueError, match="reference attention is 'all', expected one of joint"):
        References([], attention="all")


@pytest.mark.parametrize(
    ("latents", "shape"),
    [
        (torch.zeros(1, 4, 8, 8), r"\(1, 4, 8, 8\)"),
        (torch.zeros(16, 8, 8), r"\(16, 8, 8\)"),
        (torch.zeros(1, 16, 0, 8), r"\(1, 16, 0, 8\)"),
        ("latents", "'latents'"),
    ],
)
def test_latents_of_another_model_are_refused_before_anything_runs(latents, shape):
    prompt = Conditioning(
        torch.zeros(1, 5, tiny_models.CONTEXT),
        torch.zeros(1, tiny_models.POOLED),
        references=References([latents]),
    )
    with pytest.raises(ValueError, match=rf"reference latents are {shape}, expected \(B, 16"):
        DrawRequest(tiny_models.flux_transformer(), prompt, torch.zeros(1, 16, 4, 4))


def test_only_those_among_the_others_are_still():
    assert References([], "index_timestep_zero").still
    assert not References([], "index_timestep_zero", "self").still
    assert References([], attention="self").aside and not References([]).aside
