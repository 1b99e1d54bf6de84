"""The training of a LoRA on a frozen base, from settings to files.

    read and encode the data -> steps -> checkpoints, samples, validation between them -> the LoRA

Steps run in stretches between such events; for each, the residency has the transformer on the
device, whole or by way of a ring, as for drawing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..lora.save import save_lora
from ..offload import MemoryReport, OffloadRunner, Work
from ..offload.memory import free_bytes
from ..offload.plan import shrunk
from ..offload.runner import RETRY, plan_budget
from ..report.pictures import to_pil
from .config import ConfigError, TrainConfig
from .data import Data, TrainingModels, prepare
from .history import History, TrainingEvent
from .learner import Learner
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
class Trained:
    """What came of a run: its files, its history, the last samples (H, W, 3), and where memory
    went."""

    files: tuple[Path, ...]
    history: History
    samples: tuple[Tensor, ...]
    report: MemoryReport


class Trainer:
    """One run. ``run()`` does all of it; whatever it raises, it has written a checkpoint of the
    last whole step before.

    ``told`` hears of every step and may raise to end the run.
    """

    def __init__(
        self,
        config: TrainConfig,
        parts: TrainingModels,
        device: torch.device | str = "cpu",
        *,
        runner: OffloadRunner | None = None,
        told: Callable[[TrainingEvent], None] | None = None,
    ) -> None:
        self.config, self.parts = config, parts
        self.workers = Workers(device)
        self.runner = runner or OffloadRunner(config.offload.policy, self.workers.device)
        self.told = told or (lambda news: None)
        self.history = History()
        self.samples: tuple[Tensor, ...] = ()
        self.saved = 0
        # ordinary tensors, also where a host runs its nodes in inference mode
        with torch.inference_mode(False), torch.enable_grad():
            self.learner = Learner(config, parts.transformer, self.workers)

    @property
    def step(self) -> int:
        return self.learner.step

    def run(self, resume: bool = False) -> Trained:
        """Train to the last step, from the last checkpoint on where ``resume``.

        Raises ``ConfigError`` for data that cannot be used or a run that cannot go on.
        """
        with torch.inference_mode(False), torch.enable_grad():
            try:
                self.open_run(resume)
                data = prepare(
                    self.config, self.parts, self.runner,
                    lambda what, done, all: self.told(TrainingEvent(what, done, all)),
                    workers=self.workers.count, first=self.workers.main, wait=self.workers.wait,
                )  # fmt: skip
                with self.learner.lora.on(self.parts.transformer):
                    self.train(data)
            except BaseException:
                if self.step > self.saved and not self.learner.updating:
                    self.save()
                raise
            files = self.export(self.config.folder) if self.workers.main else []
        return Trained(tuple(files), self.history, self.samples, self.runner.report)

    def open_run(self, resume: bool) -> None:
        """Begin a run's folder, or take up its last checkpoint."""
        folder = self.config.folder
        found = checkpoints_of(folder)
        if resume:
            refuse_changes(self.config, read_run(folder))
            if found:
                tree = read_checkpoint(found[-1])
                self.learner.restore(tree["learner"])
                self.history = History.of(tree["history"])
                self.saved = self.step
        elif found:
            raise ConfigError(
                f"{folder} holds a run of {len(found)} checkpoints already: resume it, or choose "
                "another name"
            )
        if self.workers.main:
            write_config(self.config)

    def train(self, data: Data) -> None:
        """All steps, with what happens between them."""
        config = self.config
        work = self.learner.work(data)
        if not self.step and config.samples.every:
            self.draw(data)
        while self.step < config.steps:
            self.stretch(data, work, self.next_event())
            last = self.step == config.steps
            if self.due(config.validation.every) and data.checked:
                self.history.validation.append([self.step, self.validate(data)])
            if self.due(config.save_every) or last:
                self.save()
            if self.due(config.samples.every) and not last:
                self.draw(data)
        self.draw(data)

    def due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def next_event(self) -> int:
        """The step after which something else happens."""
        config = self.config
        found = (config.save_every, config.samples.every, config.validation.every)
        steps = [(self.step // every + 1) * every for every in found if every]
        return min([config.steps, *steps])

    def stretch(self, data: Data, work: Work, last: int) -> None:
        """Steps up to one of them, planned again once with less where memory runs out."""
        policy = self.runner.policy
        try:
            for again in (False, True):
                try:
                    with self.runner.hold("training", self.parts.transformer, work=work):
                        while self.step < last:
                            stepped = self.learner.one_step(data)
                            self.history.add(*stepped)
                            news = TrainingEvent(
                                "training", self.step, self.config.steps, stepped.loss
                            )
                            self.told(news)
                    return
                except torch.OutOfMemoryError as error:
                    if again or self.learner.updating:
                        raise
                    said = str(error).split("\n")[0]
                self.learner.forget()
                self.plan_less(work, said)
        finally:
            self.runner.policy = policy

    def plan_less(self, work: Work, said: str) -> None:
        """Under the next plan more is streamed."""
        device = self.workers.device
        if device.type == "cuda":
            torch.cuda.empty_cache()
        plan = self.runner.plan([self.parts.transformer], work)
        smaller = int(RETRY * plan_budget(self.runner.policy, free_bytes(device), plan))
        log.warning("training ran out of memory (%s); within %.2f GB now", said, smaller / 1e9)
        self.runner.policy = shrunk(self.runner.policy, smaller)

    def validate(self, data: Data) -> float:
        def check(_) -> float:
            return self.learner.check(
                data, lambda n, all: self.told(TrainingEvent("validating", n, all))
            )

        with self.learner.averaged():
            return self.runner.run(
                "validation", [self.parts.transformer], check, self.learner.checking_work(data)
            )

    def draw(self, data: Data) -> None:
        """Draw the samples and write them beside the run."""
        config = self.config.samples
        if not config.prompts or not self.workers.main:
            return
        with self.learner.averaged():
            found = draw_samples(
                config, [data.cache.text(prompt) for prompt in config.prompts],
                data.cache.text(""), self.parts.transformer, self.parts.vae, self.runner,
                lambda done, all: self.told(TrainingEvent("drawing samples", done, all)),
            )  # fmt: skip
        folder = self.config.folder / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        for i, picture in enumerate(found):
            to_pil(picture).save(folder / f"step-{self.step:06}-{i}.png")
        self.samples = tuple(found)
        self.told(TrainingEvent("samples", self.step, self.config.steps, pictures=self.samples))

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
        with self.learner.averaged():
            for number, format in enumerate(config.lora.formats):
                name = config.name if not number else f"{config.name}_{format}"
                path = folder / f"{name}.safetensors"
                written.append(
                    save_lora(
                        self.parts.transformer, self.learner.lora.factors(), path,
                        alpha=config.lora.strength, format=format, metadata=metadata,
                    )
                )  # fmt: skip
        return written


def shareable(config: TrainConfig) -> dict:
    """Settings for a file that is given away: names of files without their folders."""
    made = to_mapping(config)
    for name in ("transformer", "clip_l", "t5", "vae", "tokenizers"):
        made["model"][name] = Path(made["model"][name]).name
    for entry in (*made["data"], made["validation"]):
        entry["folder"] = Path(entry["folder"]).name
    return {name: value for name, value in made.items() if name not in ("output", "cache")}
