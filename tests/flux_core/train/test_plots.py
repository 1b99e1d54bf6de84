"""Plots of a run."""

from __future__ import annotations

import pytest

from flux_core.train.config import TIMESTEPS, ObjectiveConfig
from flux_core.train.plots import times_histogram


@pytest.mark.parametrize("name", TIMESTEPS)
def test_noise_levels_are_shown(name):
    picture = times_histogram(ObjectiveConfig(timesteps=name))
    assert picture.ndim == 3 and float(picture.std()) > 0.05
