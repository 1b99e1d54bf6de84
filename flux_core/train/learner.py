"""What is trained, and one step of it: batch to loss, gradients to new parameters.

What a step sees, ``batch`` says: it depends on the run's seed and the step's number alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..lora.trained import TrainedLora
from ..models.transformer import FluxTransformer
from ..offload import Work
from ..offload.workload import sampling_work, training_work
from .batch import Batch, training_batch, validation_batches
from .cache import fingerprint
from .config import ConfigError, TrainConfig
from .data import TrainingData
from .objective import batch_loss
from .optim import ExponentialAverage, make_optimizer, rate_factor
from .state import state_to
from .workers import Workers

#: Tensors of a trained parameter's size: itself, its gradient, and Adam's two moments.
TENSORS_A_PARAMETER = 4


class DivergedError(ValueError, FloatingPointError):
    """A training whose numbers are none any more."""


class StepResult(NamedTuple):
    """Loss, learning rate, and the norm of the gradients before they were clipped."""

    loss: float
    learning_rate: float
    gradient_norm: float


class Learner:
    """A LoRA with its optimizer on a frozen transformer, after ``step`` steps.

    ``updating`` is set while parameters change: only then is there no whole step to save.
    """

    def __init__(self, config: TrainConfig, transformer: FluxTransformer, workers: Workers) -> None:
        self.config, self.transformer, self.workers = config, transformer, workers
        self.device = workers.device
        self.step = 0
        self.updating = False
        lora = config.lora
        self.lora = TrainedLora(
            transformer, lora.targets, lora.rank, lora.strength, config.seed
        ).to(self.device)
        self.parameters = list(self.lora.parameters())
        self.optimizer = make_optimizer(config.optimizer, self.parameters)
        self.ema = ExponentialAverage(self.parameters, lora.ema) if lora.ema else None
        self.base = fingerprint(transformer)

    def work(self, data: TrainingData) -> Work:
        """What the largest batch takes."""
        share = math.ceil(max(map(len, data.sampler.epoch(0))) / self.workers.count)
        kept = TENSORS_A_PARAMETER * sum(p.nbytes for p in self.parameters)
        return training_work(
            self.transformer,
            image_tokens=data.image_tokens,
            text_tokens=data.text_length,
            batch=share,
            on_host=self.config.offload.activations_on_host,
            kept=kept,
        )

    def one_step(self, data: TrainingData) -> StepResult:
        """One update of the parameters.

        Raises ``DivergedError`` where the loss or a gradient is no number any more; nothing is
        changed then.
        """
        config = self.config.optimizer
        loss = torch.zeros((), device=self.device)
        for number in range(config.accumulation):
            loss += self.add_gradients(data, self.step * config.accumulation + number)
        self.workers.sum_gradients(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, config.clip or math.inf))
        mean_loss = float(self.workers.sum(loss))
        for what, value in (("loss", mean_loss), ("norm of the gradients", norm)):
            if not math.isfinite(value):
                self.drop_gradients()
                raise DivergedError(
                    f"the {what} is {value} at step {self.step + 1}: the training has diverged; "
                    "lower the learning rate or lora.alpha, and look for broken pictures"
                )
        rate = config.learning_rate * rate_factor(config, self.step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.updating = True
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        self.updating = False
        self.drop_gradients()
        return StepResult(mean_loss, rate, norm)

    def drop_gradients(self) -> None:
        """Forget the gradients of a step."""
        self.optimizer.zero_grad(set_to_none=True)

    def add_gradients(self, data: TrainingData, position: int) -> Tensor:
        """This process's share of the loss of the batch at a position, a scalar; its gradients are
        added up."""
        batch, count = training_batch(data, self.config, position, self.workers)
        if batch is None:
            return torch.zeros((), device=self.device)
        loss = self.losses(batch).sum() / count / self.config.optimizer.accumulation
        loss.backward()
        return loss.detach()

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each picture of a batch, (B,), on the device."""
        return batch_loss(self.transformer, batch.to(self.device), self.config.objective)

    def validation_work(self, data: TrainingData) -> Work:
        """What ``validate`` takes."""
        return sampling_work(
            self.transformer,
            image_tokens=data.image_tokens,
            text_tokens=data.text_length,
            batch=1,
            vectors=1,
        )

    @torch.no_grad()
    def validate(self, data: TrainingData, on_progress: Callable[[int, int], None]) -> float:
        """Mean loss over the pictures held out, at noise and noise levels that never change.

        ``on_progress`` is called with predictions done and in all.
        """
        count = len(data.validation) * self.config.validation.levels
        total = torch.zeros((), device=self.device)
        for done, batch in enumerate(validation_batches(data, self.config)):
            on_progress(done, count)
            total += self.losses(batch).sum() / count
        return float(total)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """What is drawn, validated and written is the exponential average where there is one."""
        if self.ema is None:
            yield
            return
        with self.ema.swapped_in():
            yield

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        ema = self.ema
        return {
            "step": self.step,
            "parameters": [p.data for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "average": ema and {"means": ema.means, "count": ema.count},
            "base": self.base,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a ``state``; raises ``ConfigError`` where it is another base model's."""
        if state["base"] != self.base:
            raise ConfigError(
                "this run began on another base model, or at another precision: a LoRA is trained "
                "on one"
            )
        with torch.no_grad():
            for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(saved)
            if self.ema is not None:
                self.ema.count = state["average"]["count"]
                for mean, saved in zip(self.ema.means, state["average"]["means"], strict=True):
                    mean.copy_(saved)
        self.optimizer.load_state_dict(state_to(state["optimizer"], self.device))
        self.step = state["step"]
