"""What a LoRA is trained on, and one step of it."""

from __future__ import annotations

import pytest

from flux_core.train.config import (
    LoraConfig,
)
from flux_core.train.state import checkpoints_of
from tests.training_runs import new_trainer, train_config


def test_a_target_that_means_nothing(tmp_path):

    for target, message in (("atention", "means no layer"), ("(", "is no pattern")):
        config = train_config(tmp_path, lora=LoraConfig(targets=(target,)))
        with pytest.raises(ValueError, match=message):
            new_trainer(config)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    run = new_trainer(train_config(tmp_path))
    real = run.learner.losses
    run.learner.losses = lambda *args: real(*args) * (float("nan") if run.step == 2 else 1)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 3"):
        run.run()
    assert checkpoints_of(run.config.folder)[-1].name == "step-000002"
