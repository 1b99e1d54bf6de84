"""A small training run: pictures of 64x64 and the pocket model, a step in a twentieth second."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

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

COLOURS = ("red", "green", "blue", "white", "black")


@cache
def parts(precision: str = "fp8_scaled") -> TrainingModels:
    """The pocket model; runs leave it as it is."""
    return TrainingModels.open(ModelConfig(precision=precision))


def draw_pictures(folder: Path, sizes=((64, 64),), count: int = 5) -> Path:
    """Flat pictures with their colours as captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        colour = COLOURS[i % len(COLOURS)]
        Image.new("RGB", sizes[i % len(sizes)], colour).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{colour}, number {i}")
    return folder


def config(tmp_path: Path, **more) -> TrainConfig:
    """Settings of a run on five pictures, some of them changed."""
    folder = tmp_path / "pictures"
    if not folder.is_dir():
        draw_pictures(folder)
    made = TrainConfig(
        name="lesson", output=str(tmp_path / "runs"), cache=str(tmp_path / "cache"), steps=4,
        batch=2, save_every=0,
        lora=LoraConfig(rank=4),
        data=(DataConfig(folder=str(folder), resolutions=(64,), step=16),),
        objective=ObjectiveConfig(caption_dropout=0.2),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup=2, schedule="cosine"),
    )  # fmt: skip
    return replace(made, **more)


def trainer(made: TrainConfig, precision: str = "fp8_scaled", **more) -> Trainer:
    return Trainer(made, parts(precision), **more)


def parameters(run: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.learner.parameters])
