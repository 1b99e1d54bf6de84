"""Gradients of a LoRA beside frozen weights of any precision, resident or streamed."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch import nn

from flux_core import FluxTransformer, OffloadPolicy, quantize
from flux_core.lora.trained import TrainedLora
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.placement import placement_of
from flux_core.offload.ring import Ring
from flux_core.offload.workload import training_work
from flux_core.quant import FORMATS, QuantizedLinear
from tests import tiny_models as tiny

MODES = ("none", "component", "stream", "stream, on the host", "auto")
#: Of the tiny model, some of its blocks.
BUDGET = 11_000_000


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradients_through_codes_are_those_of_the_dequantized_layer(name, dtype):
    torch.manual_seed(0)
    plain = nn.Linear(64, 48).to(dtype)
    quantized = QuantizedLinear.from_linear(copy.deepcopy(plain), FORMATS[name])
    with torch.no_grad():
        plain.weight.copy_(quantized.dequantize(torch.float32))
    x, grad = torch.randn(2, 5, 64).to(dtype), torch.randn(2, 5, 48).to(dtype)
    gradients_seen = []
    for layer in (plain, quantized):
        given = x.clone().requires_grad_()
        out = layer(given)
        out.backward(grad)
        gradients_seen.append((out, given.grad, layer.bias.grad))
    for expected, got in zip(*gradients_seen, strict=True):
        assert tiny.relative(got, expected) < (1e-5 if dtype == torch.float32 else 5e-3)


def test_a_backward_pass_keeps_no_second_copy_of_the_weights():
    layer = quantize(nn.Sequential(nn.Linear(512, 512, bias=False)), "fp8_scaled")
    held: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        layer(torch.randn(4, 512, requires_grad=True))
    assert all(t.numel() <= 512 * 4 for t in held)


class Step:
    """A step of the tiny model with a LoRA on every kind of layer."""

    def __init__(self, precision: str) -> None:
        model = tiny.randomise(FluxTransformer(tiny.DEV))
        if precision != "fp32":
            model = model.bfloat16()
        if precision not in ("fp32", "bf16"):
            quantize(model, precision)
        self.model = model
        self.lora = TrainedLora(model, ["attention", "mlp", "modulation"], 4, 8)
        generator = torch.Generator().manual_seed(3)
        for branch in self.lora.layer_branches:
            branch.up.data.normal_(0, 0.02, generator=generator)
        self.inputs = tiny.inputs()

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


@pytest.fixture
def card():
    """The CPU stands for a card with memory of its own, and slots are poisoned when released."""
    poisoned = mock.patch.object(
        Ring,
        "__init__",
        lambda ring, *args, _new=Ring.__init__, **more: _new(
            ring, *args[:3], poison=True, threaded=more.get("threaded")
        ),
    )
    with ExitStack() as stack:
        stack.enter_context(poisoned)
        yield


@pytest.mark.parametrize("precision", ["fp32", "bf16", *FORMATS])
def test_every_mode_gives_the_gradients_of_plain_autograd_to_the_bit(precision, card):
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


def test_drawing_while_training_is_drawing_with_the_lora(card):
    """Without gradients the same blocks run once, in the ring's order."""
    step = Step("fp8_scaled")
    with step.lora.on(step.model), torch.no_grad():
        expected = step.model(**step.inputs)
        runner = OffloadRunner(OffloadPolicy("stream", separate_memory=True), "cpu")
        with runner.hold("training", step.model, work=step.work()):
            for _ in range(2):
                assert torch.equal(step.model(**step.inputs), expected)


def test_an_error_in_a_backward_pass_leaves_everything_as_it_was(card):
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


class Elsewhere:
    """Stands for ``OnHost`` where the CPU is the card: its copy is not counted."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.copy = tensor.detach().view(torch.int16).numpy().copy()

    def back(self) -> torch.Tensor:
        return torch.from_numpy(self.copy).view(torch.bfloat16).clone()


@pytest.mark.parametrize("on_host", [False, True])
def test_predicted_bytes_are_what_a_step_takes(on_host, card, monkeypatch):
    """Tokens enough for activations to be most of it."""
    monkeypatch.setattr("flux_core.offload.gradient_checkpointing.OnHost", Elsewhere)
    step = Step("fp8_scaled")
    step.inputs = tiny.inputs(height=32, width=32, text=64)
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
