"""Settings as they are built in a script; those of files are in ``test_settings``."""

from __future__ import annotations

from dataclasses import fields

import pytest

from flux_core.train.config import (
    MODEL_FILES,
    ConfigError,
    LoraConfig,
    ModelConfig,
    OffloadConfig,
    TrainConfig,
)
from tests.training_runs import data_config


def test_what_is_not_said_follows_from_the_rest(tmp_path):
    assert LoraConfig(rank=8).strength == 8.0 and LoraConfig(rank=8, alpha=4.0).strength == 4.0
    policy = OffloadConfig("stream", vram_budget=1.5).policy
    assert (policy.mode, policy.vram_budget, policy.ram_budget) == ("stream", 1_500_000_000, None)
    config = TrainConfig(name="fox", output=str(tmp_path), data=(data_config(tmp_path),))
    assert config.folder == tmp_path / "fox"


def test_every_file_of_the_model_is_known():
    """Paths are made whole, and left out of what is given away, by this list."""
    names = {f.name for f in fields(ModelConfig)}
    assert set(MODEL_FILES) == {name for name in names if not name.endswith("precision")}


def test_a_wrong_value_is_refused_in_a_script_too():
    with pytest.raises(ConfigError, match=r"lora\.rank is 0, expected 1 to 4096"):
        LoraConfig(rank=0)
    with pytest.raises(ConfigError, match=r"there is no \[\[data\]\]"):
        TrainConfig()
