"""Gradients of a LoRA beside frozen weights of any precision, resident or streamed."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from flux_core import OffloadPolicy
from flux_core.offload import OffloadRunner
from flux_core.offload.placement import placement_of
from flux_core.quant import FORMATS
from tests.flux_core.offload.training_step import BUDGET, Step

MODES = ("none", "component", "stream", "stream, on the host", "auto")


@pytest.mark.parametrize("precision", ["fp32", "bf16", *FORMATS])
def test_every_mode_gives_the_gradients_of_plain_autograd_to_the_bit(precision):
    step = Step(precision)
    with step.lora.on(step.model):
        expected = step.run()
    before = {name: t.clone() for name, t in step.model.state_dict().items()}
    assert float(expected.norm()) > 0
    for mode in MODES:
        name, _, where = mode.partition(", ")
        budget = BUDGET if name == "auto" else None
        policy = OffloadPolicy(name, vram_budget=budget, separate_memory=True)
        runner = OffloadRunner(policy, "cpu")
        with step.lora.on(step.model):
            work = step.work(on_host=bool(where))
            with runner.hold("training", step.model, work=work):
                for _ in range(3):
                    assert torch.equal(step.run(), expected), mode
        part = runner.report.parts["training"]
        if name == "stream":
            assert part.streamed and not part.restarts
        placement_of(step.model, runner.device).evict()
    after = step.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(p.requires_grad for p in step.model.parameters())


def test_drawing_while_training_is_drawing_with_the_lora():
    """Without gradients the same blocks run once, in the ring's order."""
    step = Step("fp8_scaled")
    with step.lora.on(step.model), torch.no_grad():
        expected = step.model(**step.inputs)
        runner = OffloadRunner(OffloadPolicy("stream", separate_memory=True), "cpu")
        with runner.hold("training", step.model, work=step.work()):
            for _ in range(2):
                assert torch.equal(step.model(**step.inputs), expected)


def test_an_error_in_a_backward_pass_leaves_everything_as_it_was():
    step = Step("int8")
    with step.lora.on(step.model):
        expected = step.run()
        runner = OffloadRunner(OffloadPolicy("stream", separate_memory=True), "cpu")
        block = step.model.single_blocks[2]
        forward = type(block).forward
        for failing in ("first", "second"):
            count = 0

            def fail(*args, _failing=failing):
                nonlocal count
                count += 1
                if count == (3 if _failing == "first" else 7):
                    raise RuntimeError("injected")
                return forward(*args)

            with (
                pytest.raises(RuntimeError, match="injected"),
                runner.hold("training", step.model, work=step.work()),
                mock.patch.object(type(block), "forward", fail),
            ):
                step.run()
            assert not any("forward" in m.__dict__ for m in step.model.modules())
            with runner.hold("training", step.model, work=step.work()):
                assert torch.equal(step.run(), expected)
