"""Sigmas against those that ComfyUI computes (``host_sigmas.json``, recorded from 0.21.0)."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from flux_core.models.families import FLUX1_DEV, FLUX1_SCHNELL
from flux_core.sampling.sigmas import SCHEDULERS, make_sigmas, table_for

RECORDED = json.loads((Path(__file__).parent / "host_sigmas.json").read_text())
TABLES = {
    "dev": table_for(FLUX1_DEV),
    "schnell": table_for(FLUX1_SCHNELL),
    "resolution 256": table_for(FLUX1_DEV, "resolution", 256),
    "resolution 3072": table_for(FLUX1_DEV, "resolution", 3072),
}


@pytest.mark.parametrize("key", RECORDED)
def test_sigmas_are_the_host_s(key):
    model, scheduler, steps = key.split("/")
    sigmas_made = make_sigmas(TABLES[model], scheduler, int(steps))
    expected = torch.tensor(RECORDED[key])
    assert sigmas_made.shape == expected.shape
    assert (sigmas_made - expected).abs().max() < 1e-6


def test_diffsynth_s_shift_is_a_factor_of_three():
    table = table_for(FLUX1_DEV, "diffsynth")
    t = torch.linspace(0.01, 1, 50)
    assert torch.allclose(table.sigma(t), 3 * t / (1 + 2 * t), atol=1e-6)


def test_resolution_shift_has_flux_s_two_anchors():
    assert table_for(FLUX1_DEV, "resolution", 256).mu == pytest.approx(0.5)
    assert table_for(FLUX1_DEV, "resolution", 4096).mu == pytest.approx(1.15)
    assert table_for(FLUX1_SCHNELL, "resolution", 4096).mu == pytest.approx(1.15)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("denoise", [1.0, 0.6, 0.25])
def test_denoise_keeps_the_number_of_steps(scheduler, denoise):
    sigmas = make_sigmas(table_for(FLUX1_DEV), scheduler, 8, denoise)
    assert len(sigmas) == 9 and sigmas[-1] == 0
    assert (sigmas.diff() < 0).all() and sigmas[0] <= 1
    longer = make_sigmas(table_for(FLUX1_DEV), scheduler, math.floor(8 / denoise))
    assert torch.equal(sigmas, longer[-9:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("simple", 0), "steps is 0, expected 1 to 10000"),
        (("karras", 4), "scheduler is 'karras', expected one of simple"),
        (("simple", 4, 0.0), "denoise is 0.0"),
        (("simple", 4, 1.5), "denoise is 1.5"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_sigmas(table_for(FLUX1_DEV), *arguments)
    with pytest.raises(ValueError, match="shift is 'linear'"):
        table_for(FLUX1_DEV, "linear")
