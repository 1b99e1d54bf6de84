"""What is trained, and one step of it: batch to loss, gradients to new parameters.

Random numbers of a step come from the run's seed and the step's number alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..lora.trained import TrainedLora
from ..models.text_encoders import TextEncoding
from ..models.transformer import FluxTransformer
from ..offload import Work
from ..offload.workload import sampling_work, training_work
from ..sampling.latents import host_noise, standardise
from .buckets import mixed
from .cache import fingerprint
from .config import ConfigError, TrainConfig
from .data import STEP, VALIDATION, Data
from .dataset import Item
from .objective import draw_times, losses_of, predict, weights_of
from .optim import Average, make_optimizer, rate_factor
from .state import same_device
from .workers import Workers

#: A parameter, its gradient and Adam's two moments, as bytes a byte of parameter.
KEPT = 4


class Stepped(NamedTuple):
    """What came of a step: loss, learning rate, norm of the gradients before they were cut."""

    loss: float
    rate: float
    norm: float


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
        self.average = Average(self.parameters, lora.ema) if lora.ema else None
        self.base = fingerprint(transformer)

    def work(self, data: Data) -> Work:
        """What the largest batch takes."""
        share = math.ceil(max(map(len, data.batches.epoch(0))) / self.workers.count)
        kept = KEPT * sum(p.nbytes for p in self.parameters)
        return training_work(
            self.transformer, image=data.pixels // 256, text=data.text_length, batch=share,
            on_host=self.config.offload.activations_on_host, kept=kept,
        )  # fmt: skip

    def one_step(self, data: Data) -> Stepped:
        """One update of the parameters.

        Raises ``FloatingPointError`` where the loss or a gradient is no number any more; nothing is
        changed then.
        """
        config = self.config.optimizer
        loss = torch.zeros((), device=self.device)
        for part in range(config.accumulation):
            loss += self.batch_loss(data, self.step * config.accumulation + part)
        self.workers.average(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, config.clip or math.inf))
        found = float(self.workers.sum(loss))
        if not math.isfinite(found) or not math.isfinite(norm):
            self.forget()
            raise FloatingPointError(
                f"the loss is {found} at step {self.step + 1}: lower the learning rate"
            )
        rate = config.learning_rate * rate_factor(config, self.step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.updating = True
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.step += 1
        self.updating = False
        self.forget()
        return Stepped(found, rate, norm)

    def forget(self) -> None:
        """Drop the gradients of a step."""
        self.optimizer.zero_grad(set_to_none=True)

    def batch_loss(self, data: Data, position: int) -> Tensor:
        """This process's share of a batch's loss, its gradients added up."""
        objective = self.config.objective
        whole = data.batches.at(position)
        generator = torch.Generator().manual_seed(mixed(self.config.seed, STEP, position))
        size = data.items[whole[0]].size
        # numbers of the whole batch, so that a picture's are the same however it is shared out
        tokens = size.width * size.height // 256
        times = draw_times(objective, len(whole), tokens, generator)
        shape = (len(whole), 16, size.height // 8, size.width // 8)
        noise = torch.randn(shape, generator=generator)
        dropped = torch.rand(len(whole), generator=generator) < objective.caption_dropout
        mine = self.workers.share(len(whole))
        if not len(mine):
            return torch.zeros((), device=self.device)
        items = [data.items[whole[i]] for i in mine]
        captions = ["" if dropped[i] else data.items[whole[i]].caption for i in mine]
        span = slice(mine.start, mine.stop)
        losses = self.losses(data, items, captions, times[span], noise[span])
        loss = losses.sum() / len(whole) / self.config.optimizer.accumulation
        loss.backward()
        return loss.detach()

    def losses(
        self, data: Data, items: list[Item], captions: list[str], times: Tensor, noise: Tensor
    ) -> Tensor:
        """The loss of each item, (B,)."""
        objective, device = self.config.objective, self.device
        found = [data.cache.latents(item) for item in items]
        clean = standardise(torch.cat([latents for latents, _ in found])).to(device)
        mask = None
        if any(m is not None for _, m in found):
            everywhere = torch.ones(1, *clean.shape[-2:])
            mask = torch.stack([everywhere if m is None else m for _, m in found])
            mask = mask.clamp_min(objective.mask_floor).to(device)
        texts = [data.cache.text(caption) for caption in captions]
        text = TextEncoding(
            torch.cat([t.context for t in texts]).to(device),
            torch.cat([t.pooled for t in texts]).to(device),
        )
        t, noise = times.to(device), noise.to(device)
        level = t.view(-1, 1, 1, 1)
        noisy = (1 - level) * clean + level * noise
        velocity = predict(self.transformer, noisy, t, text, objective.guidance)
        return losses_of(velocity, clean, noise, weights_of(objective, times).to(device), mask)

    def checking_work(self, data: Data) -> Work:
        """What ``check`` takes."""
        return sampling_work(
            self.transformer, [], image=data.pixels // 256, text=data.text_length, batch=1,
            vectors=1,
        )  # fmt: skip

    @torch.no_grad()
    def check(self, data: Data, told: Callable[[int, int], None]) -> float:
        """Mean loss over the pictures held out, at noise and noise levels that never change."""
        count = self.config.validation.levels
        levels = (torch.arange(count) + 0.5) / count
        total = torch.zeros((), device=self.device)
        jobs = [(item, n, level) for n, item in enumerate(data.checked) for level in range(count)]
        for done, (item, number, level) in enumerate(jobs):
            told(done, len(jobs))
            seed = mixed(self.config.seed, VALIDATION, number, level)
            noise = host_noise((1, 16, item.size.height // 8, item.size.width // 8), seed)
            times = levels[level : level + 1]
            total += self.losses(data, [item], [item.caption], times, noise).sum() / len(jobs)
        return float(total)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """What is drawn, checked and written is the running mean where there is one."""
        if self.average is None:
            yield
            return
        with self.average.standing_in():
            yield

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        average = self.average
        return {
            "step": self.step,
            "parameters": [p.data for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "average": average and {"means": average.means, "count": average.count},
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
            for parameter, found in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(found)
            if self.average is not None:
                self.average.count = state["average"]["count"]
                for mean, found in zip(self.average.means, state["average"]["means"], strict=True):
                    mean.copy_(found)
        self.optimizer.load_state_dict(same_device(state["optimizer"], self.device))
        self.step = state["step"]
