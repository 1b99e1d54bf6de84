"""The training of a LoRA on a frozen base, from settings to files.

    read and encode the data -> steps -> checkpoints, samples, validation between them -> the LoRA

Steps run in stretches between those; for each, the offload runner has the transformer on
the device, whole or by way of a ring, as for drawing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import locked_folder, reading
from ..lora.save import save_lora
from ..offload import MemoryReport, OffloadRunner, Work
from ..offload.memory import free_bytes
from ..offload.plan import shrunk
from ..offload.runner import ONE_DEVICE, RETRY, plan_budget
from ..quant.fused import by_torch
from ..report.pictures import write_picture
from ..units import readable_bytes
from .config import MODEL_FILES, ConfigError, TrainConfig
from .data import TrainingData, prepare
from .history import History, TrainingEvent
from .learner import Learner
from .models import TrainingModels
from .samples import draw_samples
from .settings import to_mapping
from .state import (
    checkpoints_of,
    read_checkpoint,
    read_run,
    refuse_changes,
    write_checkpoint,
    write_config,
)
from .workers import Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """What came of a run: its files, its history, the last samples (H, W, 3), and where memory
    went."""

    files: tuple[Path, ...]
    history: History
    samples: tuple[Tensor, ...]
    report: MemoryReport


class Trainer:
    """One run. ``run()`` does all of it; whatever it raises, it has written a checkpoint of the
    last whole step before.

    ``on_event`` is called after every step, and may raise to end the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        models: TrainingModels,
        device: torch.device | str = "cpu",
        *,
        runner: OffloadRunner | None = None,
        on_event: Callable[[TrainingEvent], None] | None = None,
    ) -> None:
        self.config, self.models = config, models
        self.workers = Workers(device)
        self.runner = runner or OffloadRunner(config.offload.policy, self.workers.device)
        if self.runner.policy.devices:
            raise ConfigError(ONE_DEVICE)
        self.on_event = on_event or (lambda event: None)
        self.history = History()
        self.samples: tuple[Tensor, ...] = ()
        self.saved = 0
        # ordinary tensors, also where a host runs its nodes in inference mode
        with torch.inference_mode(False), torch.enable_grad():
            self.learner = Learner(config, models.transformer, self.workers)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.learner.step

    def run(self, resume: bool = False) -> TrainingResult:
        """Train to the last step, from the last checkpoint on where ``resume``.

        Raises ``ConfigError`` for data that cannot be used or a run that cannot go on.
        """
        writes = self.workers.main
        with locked_folder(self.config.folder, "a training runs") if writes else nullcontext():
            return self._run(resume)

    def _run(self, resume: bool) -> TrainingResult:
        """``run`` for whoever has the run's folder."""
        with torch.inference_mode(False), torch.enable_grad(), by_torch():
            try:
                self.open_run(resume)
                data = prepare(
                    self.config,
                    self.models,
                    self.runner,
                    lambda what, done, count: self.on_event(TrainingEvent(what, done, count)),
                    workers=self.workers.count,
                    first=self.workers.main,
                    wait=self.workers.wait,
                )
                with self.learner.lora.on(self.models.transformer):
                    self.train(data)
            except BaseException:
                if self.step > self.saved and not self.learner.updating:
                    self.save()
                raise
            files = self.export(self.config.folder) if self.workers.main else []
        return TrainingResult(tuple(files), self.history, self.samples, self.runner.report)

    def open_run(self, resume: bool) -> None:
        """Begin a run's folder, or take up its last checkpoint."""
        folder = self.config.folder
        checkpoints = checkpoints_of(folder)
        if resume:
            refuse_changes(self.config, read_run(folder))
            if checkpoints:
                tree = read_checkpoint(checkpoints[-1])
                with reading(checkpoints[-1], "a checkpoint of this run", ConfigError):
                    self.learner.restore(tree["learner"])
                    self.history = History.of(tree["history"])
                self.saved = self.step
        elif checkpoints:
            raise ConfigError(
                f"{folder} holds a run of {len(checkpoints)} checkpoints already: resume it, or "
                "choose another name"
            )
        if self.workers.main:
            write_config(self.config)

    def train(self, data: TrainingData) -> None:
        """All steps, with what happens between them."""
        config = self.config
        work = self.learner.work(data)
        if not self.step and config.samples.every:
            self.draw(data)
        while self.step < config.steps:
            self.train_until(self.next_stop(), data, work)
            last = self.step == config.steps
            if self.is_due(config.validation.every) and data.validation:
                self.history.validation.append([self.step, self.validate(data)])
            if self.is_due(config.save_every) or last:
                self.save()
            if self.is_due(config.samples.every) and not last:
                self.draw(data)
        self.draw(data)

    def is_due(self, every: int) -> bool:
        """Whether something happens now that happens every so many steps, 0 for never."""
        return bool(every) and self.step % every == 0

    def next_stop(self) -> int:
        """The step after which something else happens."""
        config = self.config
        intervals = (config.save_every, config.samples.every, config.validation.every)
        steps = [(self.step // every + 1) * every for every in intervals if every]
        return min([config.steps, *steps])

    def train_until(self, last: int, data: TrainingData, work: Work) -> None:
        """Steps up to the ``last``, planned again once with less where memory runs out."""
        policy = self.runner.policy
        try:
            try:
                self.take_steps(last, data, work)
                return
            except torch.OutOfMemoryError as error:
                if self.learner.updating:
                    raise
                reason = str(error).split("\n")[0]
            # outside of the handler, whose traceback keeps a step's activations alive
            self.learner.drop_gradients()
            self.plan_less(work, reason)
            self.take_steps(last, data, work)
        finally:
            self.runner.policy = policy

    def take_steps(self, last: int, data: TrainingData, work: Work) -> None:
        """Steps up to the ``last``, with the transformer where the policy has it."""
        steps = self.config.steps
        with self.runner.hold("training", self.models.transformer, work=work):
            while self.step < last:
                result = self.learner.one_step(data)
                self.history.add(*result)
                self.on_event(TrainingEvent("training", self.step, steps, result.loss))

    def plan_less(self, work: Work, reason: str) -> None:
        """Have more streamed under the next plan."""
        device = self.workers.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
        plan = self.runner.plan([self.models.transformer], work)
        smaller = int(RETRY * plan_budget(self.runner.policy, free_bytes(device), plan))
        log.warning(
            "training ran out of memory (%s); within %s now", reason, readable_bytes(smaller)
        )
        self.runner.policy = shrunk(self.runner.policy, smaller)

    def validate(self, data: TrainingData) -> float:
        """The mean loss over the pictures held out."""

        def on_progress(done: int, count: int) -> None:
            self.on_event(TrainingEvent("validating", done, count))

        with self.learner.ema_weights():
            return self.runner.run(
                "validation",
                [self.models.transformer],
                lambda plan: self.learner.validate(data, on_progress),
                self.learner.validation_work(data),
            )

    def draw(self, data: TrainingData) -> None:
        """Draw the samples and write them beside the run."""
        config = self.config.samples
        if not config.prompts or not self.workers.main:
            return
        with self.learner.ema_weights():
            pictures = draw_samples(
                config,
                [data.cache.text(prompt) for prompt in config.prompts],
                data.cache.text(""),
                self.models.transformer,
                self.models.vae,
                self.runner,
                lambda done, all: self.on_event(TrainingEvent("drawing samples", done, all)),
            )
        folder = self.config.folder / "samples"
        for i, picture in enumerate(pictures):
            write_picture(picture, folder / f"step-{self.step:06}-{i}.png")
        self.samples = tuple(pictures)
        self.on_event(TrainingEvent("samples", self.step, self.config.steps, pictures=self.samples))

    def save(self) -> None:
        """Write a checkpoint of the last whole step."""
        if self.workers.main:
            tree = {"learner": self.learner.state(), "history": vars(self.history)}
            folder = self.config.folder
            write_checkpoint(folder, self.step, tree, self.export, self.config.keep)
            self.history.write(folder)
        self.saved = self.step

    def export(self, folder: Path) -> list[Path]:
        """Write the LoRA in every format that is asked for; the first has the plain name."""
        config = self.config
        metadata = {
            "fluxfit.base": self.learner.base,
            "fluxfit.step": str(self.step),
            "fluxfit.config": json.dumps(shareable(config)),
        }
        written = []
        with self.learner.ema_weights():
            for number, format in enumerate(config.lora.formats):
                name = config.name if not number else f"{config.name}_{format}"
                path = folder / f"{name}.safetensors"
                written.append(
                    save_lora(
                        self.models.transformer,
                        self.learner.lora.factors(),
                        path,
                        alpha=config.lora.strength,
                        format=format,
                        metadata=metadata,
                    )
                )
        return written


def shareable(config: TrainConfig) -> dict[str, Any]:
    """Settings for a file that is given away: names of files without their folders."""
    settings = to_mapping(config)
    for name in MODEL_FILES:
        settings["model"][name] = Path(settings["model"][name]).name
    for entry in (*settings["data"], settings["validation"]):
        entry["folder"] = Path(entry["folder"]).name
    return {name: value for name, value in settings.items() if name not in ("output", "cache")}
