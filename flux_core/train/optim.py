"""Optimizers by name, the learning rate over a run, and a running mean of what is trained."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .config import OptimizerConfig

#: The least that Adam divides by.
EPSILON = 1e-8


def make_optimizer(
    config: OptimizerConfig, parameters: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """An optimizer; raises ``ModuleNotFoundError`` saying which package one needs."""
    rate, decay = config.learning_rate, config.weight_decay
    if config.name == "adamw":
        return torch.optim.AdamW(
            parameters, rate, betas=config.betas, eps=EPSILON, weight_decay=decay
        )
    if config.name == "adafactor":
        return torch.optim.Adafactor(parameters, rate, weight_decay=decay)
    if config.name == "adamw8bit":
        try:
            import bitsandbytes  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise missing_package("adamw8bit", "bitsandbytes") from error
        return bitsandbytes.optim.AdamW8bit(
            parameters, rate, betas=config.betas, eps=EPSILON, weight_decay=decay
        )
    try:
        import prodigyopt  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise missing_package("prodigy", "prodigyopt") from error
    return prodigyopt.Prodigy(parameters, rate, betas=config.betas, weight_decay=decay)


def missing_package(name: str, package: str) -> ModuleNotFoundError:
    """The error to raise where an optimizer's package is not installed."""
    return ModuleNotFoundError(
        f"optimizer {name!r} needs the package {package}: pip install {package}, or take 'adamw'"
    )


def rate_factor(config: OptimizerConfig, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at a step (from 0) of a run."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(1, steps - config.warmup)
    return 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


class ExponentialAverage:
    """An exponential moving average (EMA) of parameters; a young one follows faster."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.means = [p.detach().clone() for p in parameters]
        self.count = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in, after a step."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        for mean, parameter in zip(self.means, self.parameters, strict=True):
            mean.lerp_(parameter, 1 - decay)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """The means in the place of the parameters."""
        own: list[Tensor] = [p.data for p in self.parameters]
        try:
            for parameter, mean in zip(self.parameters, self.means, strict=True):
                parameter.data = mean
            yield
        finally:
            for parameter, tensor in zip(self.parameters, own, strict=True):
                parameter.data = tensor
