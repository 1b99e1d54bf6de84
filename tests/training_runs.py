"""Small training runs: pictures of 64x64 and the pocket model, a step in a twentieth second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from flux_core.train import TrainConfig, Trainer, TrainingModels
from flux_core.train.config import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
)
from flux_core.train.dataset import DataProblems, Item, read_items

COLOURS = ("red", "green", "blue", "white", "black")


@cache
def pocket_models(precision: str = "fp8_scaled") -> TrainingModels:
    """The pocket model; runs leave it as it is."""
    return TrainingModels.open(ModelConfig(precision=precision))


def write_pictures(
    folder: Path, sizes: Sequence[tuple[int, int]] = ((64, 64),), count: int = 5
) -> Path:
    """Flat pictures with their colours as captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        colour = COLOURS[i % len(COLOURS)]
        Image.new("RGB", sizes[i % len(sizes)], colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{colour}, number {i}")
    return folder


def data_config(folder: Path, **more: Any) -> DataConfig:
    """Settings of a folder of small pictures."""
    return DataConfig(folder=str(folder), **({"resolutions": (64,), "step": 16} | more))


def read_folders(*configs: DataConfig) -> tuple[list[Item], DataProblems]:
    """What is in some folders, and what is wrong with them."""
    problems = DataProblems()
    return read_items(configs, problems), problems


def train_config(tmp_path: Path, **more: Any) -> TrainConfig:
    """Settings of a run on five pictures, some of them changed."""
    folder = tmp_path / "pictures"
    if not folder.is_dir():
        write_pictures(folder)
    config = TrainConfig(
        name="lesson",
        output=str(tmp_path / "runs"),
        cache=str(tmp_path / "cache"),
        steps=4,
        batch=2,
        save_every=0,
        lora=LoraConfig(rank=4),
        data=(data_config(folder),),
        objective=ObjectiveConfig(caption_dropout=0.2),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup=2, schedule="cosine"),
    )
    return replace(config, **more)


def new_trainer(config: TrainConfig, precision: str = "fp8_scaled", **more: Any) -> Trainer:
    """A run that has not begun; ``more`` are keywords of ``Trainer``."""
    return Trainer(config, pocket_models(precision), **more)


def trained_parameters(run: Trainer) -> torch.Tensor:
    """All of a run's parameters, (N,)."""
    return torch.cat([p.detach().flatten() for p in run.learner.parameters])
