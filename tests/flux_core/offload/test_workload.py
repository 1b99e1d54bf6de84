"""Bytes that a training step takes."""

from __future__ import annotations

import pytest
import torch

from flux_core import OffloadPolicy
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from tests import tiny_models
from tests.flux_core.offload.training_step import Step


class Elsewhere:
    """Stands for ``OnHost`` where the CPU is the card: its copy is not counted."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.copy = tensor.detach().numpy().copy()

    def back(self) -> torch.Tensor:
        return torch.from_numpy(self.copy).clone()


@pytest.mark.parametrize("on_host", [False, True])
def test_predicted_bytes_are_what_a_step_takes(on_host, monkeypatch):
    """Tokens enough for activations to be most of it."""
    monkeypatch.setattr("flux_core.offload.gradient_checkpointing.OnHost", Elsewhere)
    step = Step("fp8_scaled", torch.float32)  # 16 bits are cast on some CPUs, which counts
    step.inputs = tiny_models.inputs(height=32, width=32, text=64)
    with step.lora.on(step.model):
        work = step.work(on_host)
        runner = OffloadRunner(OffloadPolicy("none", separate_memory=True), "cpu")
        with runner.hold("training", step.model, work=work):
            step.run()
            step.lora.zero_grad(set_to_none=True)
            with LiveBytes() as counted:
                step.run()
    gradients_seen = counted.peak - sum(p.nbytes for p in step.lora.parameters())  # their gradients
    assert abs(gradients_seen - work.activations) < 0.06 * gradients_seen
