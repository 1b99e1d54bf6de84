"""A training step on a tiny model."""

from __future__ import annotations

import torch

from flux_core import quantize
from flux_core.lora.trained import TrainedLora
from flux_core.offload.workload import training_work
from tests import tiny_models

#: Of the tiny model, some of its blocks.
BUDGET = 11_000_000


class Step:
    """A step of the tiny model with a LoRA on every kind of layer."""

    def __init__(self, precision: str, dtype: torch.dtype = torch.bfloat16) -> None:
        model = tiny_models.flux_transformer()
        if precision != "fp32":
            model = model.to(dtype)
        if precision not in ("fp32", "bf16"):
            quantize(model, precision)
        self.model = model
        self.lora = TrainedLora(model, ["attention", "mlp", "modulation"], 4, 8)
        generator = torch.Generator().manual_seed(3)
        for branch in self.lora.layer_branches:
            branch.up.data.normal_(0, 0.02, generator=generator)
        self.inputs = tiny_models.inputs()

    def run(self) -> torch.Tensor:
        """Gradients of all factors, one after another."""
        self.lora.zero_grad(set_to_none=True)
        self.model(**self.inputs).float().square().mean().backward()
        return torch.cat([p.grad.flatten() for p in self.lora.parameters()])

    def work(self, on_host: bool = False):
        image, text = (self.inputs[name].shape[1] for name in ("img", "txt"))
        return training_work(
            self.model, image_tokens=image, text_tokens=text, batch=2, on_host=on_host, kept=0
        )
