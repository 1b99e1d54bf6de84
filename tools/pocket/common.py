"""What the training scripts share: where things lie, resuming, schedules, progress.

Every script runs alone or as several workers (``torchrun --nproc-per-node 2 -m tools.pocket...``),
each with a share of the batch and one thread. On a CPU that is as fast as threads, and unlike
threads it does not stall when something else runs.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".cache" / "pocket"
ASSETS = ROOT / "assets" / "pocket"


def arguments(doc: str | None, **defaults: float) -> argparse.Namespace:
    """Options that every script has, with its own defaults; ``--NAME VALUE`` for each."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=WORK, help="where checkpoints are kept")
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    return parser.parse_args()


def cosine(step: int, total: int, warmup: int) -> float:
    """Learning-rate factor: a linear rise, then half a cosine down to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


WORKERS = int(os.environ.get("WORLD_SIZE", "1"))
WORKER = int(os.environ.get("RANK", "0"))


def average_gradients(module: nn.Module) -> None:
    """Give every worker the mean of all workers' gradients, in one message."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.div_(WORKERS).split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


class Average:
    """An exponential moving average of a module's parameters."""

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        self.module, self.decay, self.steps = module, decay, 0
        self.values = {k: v.detach().clone().float() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 10))
        for name, value in self.module.state_dict().items():
            self.values[name].lerp_(value.float(), weight)


class Run:
    """A training run that can be stopped at any moment and started again.

    Everything that decides the next step (weights, optimizer, average, step) is in one file, which
    is replaced whole; random numbers are drawn from the step, so that a resumed run repeats them.
    """

    def __init__(
        self,
        name: str,
        out: Path,
        module: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        steps: int,
        warmup: int = 100,
        decay: float = 0.999,
    ) -> None:
        self.path = out / f"{name}.pt"
        self.module, self.optimizers = module, optimizers
        self.average = Average(module, decay)
        self.steps, self.warmup, self.step = steps, warmup, 0
        self.rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
        out.mkdir(parents=True, exist_ok=True)
        if WORKERS > 1 and not dist.is_initialized():
            dist.init_process_group("gloo")
        if self.path.exists():
            self.load()

    def load(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        for name, value in state["average"].items():
            self.average.values[name].copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = self.average.steps = state["step"]
        print(f"resumed {self.path.name} at step {self.step}", flush=True)

    def save(self) -> None:
        if WORKER:
            return
        state = {
            "module": self.module.state_dict(),
            "average": self.average.values,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def __iter__(self) -> Iterator[int]:
        """Seeds for the next batch, one a step and worker; the caller then calls ``update``."""
        self.started, self.first, self.losses = time.monotonic(), self.step, []
        while self.step < self.steps:
            factor = cosine(self.step, self.steps, self.warmup)
            for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
            yield self.step * WORKERS + WORKER
        self.save()

    def update(self, loss: Tensor, every: int = 50, clip: float = 1.0) -> None:
        """Apply the gradients, note the loss, and now and then report and save."""
        loss.backward()
        if WORKERS > 1:
            average_gradients(self.module)
        nn.utils.clip_grad_norm_(self.module.parameters(), clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.average.update()
        self.losses.append(loss.item())
        self.step += 1
        if self.step % every == 0 and WORKER == 0:
            recent = sum(self.losses[-every:]) / len(self.losses[-every:])
            pace = (time.monotonic() - self.started) / (self.step - self.first)
            left = pace * (self.steps - self.step) / 60
            print(
                f"{self.path.stem} {self.step}/{self.steps} loss {recent:.5f} "
                f"{pace:.2f} s a step, {left:.0f} min left",
                flush=True,
            )
        if self.step % (4 * every) == 0:
            self.save()


def averaged(out: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of a run."""
    return torch.load(out / f"{name}.pt", map_location="cpu", weights_only=True)["average"]
