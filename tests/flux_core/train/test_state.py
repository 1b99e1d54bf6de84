"""Checkpoints on disk."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from unittest import mock

import pytest
import torch

from flux_core.train.config import (
    ConfigError,
)
from flux_core.train.state import checkpoints_of, read_checkpoint
from tests.training_runs import new_trainer, train_config, trained_parameters


def test_a_broken_checkpoint_is_named(tmp_path):
    config = train_config(tmp_path, save_every=2)
    new_trainer(config).run()
    (folder,) = checkpoints_of(config.folder)[-1:]
    state = folder / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-5])
    with pytest.raises(ConfigError, match=r"step-000004: is no whole checkpoint .*delete it"):
        new_trainer(config).run(resume=True)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path):
    config = train_config(tmp_path, save_every=2)

    def on_event(event) -> None:
        if event.what == "training" and event.done == 3:
            stack.enter_context(
                mock.patch(
                    "flux_core.train.state.save_file", side_effect=OSError(28, "No space left")
                )
            )

    with ExitStack() as stack, pytest.raises(OSError, match="No space left"):
        new_trainer(config, on_event=on_event).run()
    assert [f.name for f in checkpoints_of(config.folder)] == ["step-000002"]
    assert not list(config.folder.rglob("*.partial"))
    assert read_checkpoint(checkpoints_of(config.folder)[0])["learner"]["step"] == 2
    whole = new_trainer(replace(config, name="whole"))
    whole.run()
    again = new_trainer(config)
    again.run(resume=True)
    assert torch.equal(trained_parameters(again), trained_parameters(whole))


def test_old_checkpoints_go(tmp_path):
    config = train_config(tmp_path, save_every=1, keep=2)
    new_trainer(config).run()
    assert [f.name for f in checkpoints_of(config.folder)] == ["step-000003", "step-000004"]
