"""Optimizers by name."""

from __future__ import annotations

import sys
from unittest import mock

import pytest

from flux_core.train.config import (
    OptimizerConfig,
)
from tests.training_runs import new_trainer, train_config


def test_what_an_optimizer_needs_is_said(tmp_path):
    for name, package in (("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")):
        config = train_config(tmp_path, optimizer=OptimizerConfig(name))
        with (
            mock.patch.dict(sys.modules, {package: None}),
            pytest.raises(ModuleNotFoundError, match=f"pip install {package}"),
        ):
            new_trainer(config)
