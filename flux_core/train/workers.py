"""Several processes that train one LoRA, each on its share of every batch.

Started by ``accelerate launch`` or ``torchrun``; alone, everything here does nothing. Gradients are
small, a LoRA's, and are summed in one message a step.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Workers:
    """This process among all; ``main`` is the one that writes."""

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = 0
        self.accelerator: Any = None
        if self.count > 1:
            try:
                from accelerate import Accelerator  # pyright: ignore[reportMissingImports]
            except ImportError as error:
                raise ModuleNotFoundError(
                    "several processes need the package accelerate: pip install accelerate"
                ) from error
            self.accelerator = Accelerator(cpu=self.device.type == "cpu")
            # left to the interpreter's end, its threads may outlive what they use, and abort
            atexit.register(self.accelerator.end_training)
            self.rank = self.accelerator.process_index
            if self.device.type != "cpu":  # which accelerate gives a number
                self.device = self.accelerator.device

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Places in a batch of so many that are this process's, as even as can be."""
        return range(batch * self.rank // self.count, batch * (self.rank + 1) // self.count)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Gradients become their sum over all processes: each has its share of the mean."""
        if self.accelerator is None:
            return
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = self.accelerator.reduce(torch.cat([g.flatten() for g in grads]), "sum")
        for parameter, grad in zip(
            parameters, flat.split([p.numel() for p in parameters]), strict=True
        ):
            parameter.grad = grad.view_as(parameter)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a scalar over all processes, a scalar."""
        return value if self.accelerator is None else self.accelerator.reduce(value, "sum")

    def wait(self) -> None:
        """Until all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
