"""Parts under a policy: the same bits, what is predicted, and whatever goes wrong on the way."""

from __future__ import annotations

import random

import pytest
import torch

from flux_core import (
    FluxPipeline,
    OffloadPolicy,
    quantize,
)
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.blocks import blocks_of
from flux_core.offload.memory import device_buffer
from flux_core.offload.placement import placement_of
from flux_core.offload.plan import cost_of
from flux_core.offload.workload import sampling_work
from flux_core.quant import FORMATS
from tests import tiny_models
from tests.flux_core.offload.cpu_as_card import (
    CPU,
    SIDE,
    card_policy,
    drawn_on_card,
    placement_on_card,
)
from tests.flux_core.offload.pocket_pictures import SETTINGS, pocket_picture

PRECISIONS = ["bf16", *sorted(FORMATS)]


@pytest.mark.parametrize(
    ("precision", "controls"), [("bf16", False), *((precision, True) for precision in PRECISIONS)]
)
def test_every_policy_gives_the_same_bits_twice(precision, controls):
    expected = pocket_picture(precision, OffloadPolicy("none"), controls, steps=2)
    for policy in (
        OffloadPolicy("component"),
        OffloadPolicy("stream"),
        OffloadPolicy("stream", vram_budget=14_000_000, slots=3),
        OffloadPolicy("auto", vram_budget=13_000_000),
        OffloadPolicy("component", parts={"transformer": "stream", "clip_l": "none"}),
    ):
        assert torch.equal(pocket_picture(precision, policy, controls, steps=2), expected)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_ancestral"])
def test_every_sampler_gives_the_same_bits(sampler):
    a, b = (pocket_picture("int8", OffloadPolicy(m), sampler=sampler) for m in ("none", "stream"))
    assert torch.equal(a, b)


class BrokenError(Exception):
    pass


class Fault:
    """Raises an error the ``left``-th time that it is called, once."""

    def __init__(self, left: int, error: Exception) -> None:
        self.left, self.error = left, error

    def __call__(self, *_) -> None:
        self.left -= 1
        if self.left == -1:
            raise self.error

    def buffer(self, size: int, device: torch.device) -> torch.Tensor:
        self()
        return device_buffer(size, device)


@pytest.mark.parametrize("mode", ["component", "stream", "auto", "none"])
def test_faults_leave_everything_as_it_was(mode, monkeypatch):
    """Interrupts and failing allocations anywhere in a run: the memory is back, and the next
    picture is the same to the bit. A thousand, of more kinds: ``tests.wild.faults``."""
    budget = 14_000_000 if mode == "auto" else None
    policy = OffloadPolicy(mode, vram_budget=budget, separate_memory=True)
    pipeline = FluxPipeline.from_pocket(precision="int8", policy=policy)
    parts = (
        pipeline.text_encoders.clip_l,
        pipeline.text_encoders.t5,
        pipeline.transformer,
        pipeline.vae,
    )
    settings = SETTINGS | {"steps": 2, "width": 32, "height": 32}
    expected = pipeline("a red circle", **settings).images
    state = {k: v.clone() for k, v in pipeline.transformer.state_dict().items()}
    baseline = [placement_of(part, CPU).held for part in parts]
    rng = random.Random(mode)
    raised = recovered = 0
    for turn in range(16):
        pipeline.text_encoders.encodings.clear()
        error = torch.OutOfMemoryError("no room") if turn % 2 else BrokenError()
        fault = Fault(rng.randrange(150), error)
        handle = torch.nn.modules.module.register_module_forward_pre_hook(fault)
        with monkeypatch.context() as patch:
            if turn % 4 == 3:  # also where buffers are made
                for place in ("host_weights", "ring"):
                    patch.setattr(f"flux_core.offload.{place}.device_buffer", fault.buffer)
            try:
                drawn = pipeline("a red circle", **settings).images
                recovered += bool(turn % 2) and fault.left < 0
                assert torch.equal(drawn, expected)
                again = False
            except BrokenError:
                raised += 1
                again = True
            finally:
                handle.remove()
        assert all("forward" not in m.__dict__ for part in parts for m in part.modules())
        assert pipeline.transformer.precomputed is None
        if mode in ("component", "stream"):
            assert [placement_of(part, CPU).held for part in parts] == baseline == [0] * 4
        if again:
            assert torch.equal(pipeline("a red circle", **settings).images, expected)
    assert raised > 3 and recovered > 3
    assert [placement_of(part, CPU).held for part in parts] == baseline
    for part in parts:
        placement_of(part, CPU).evict()
    after = pipeline.transformer.state_dict()
    assert all(
        torch.equal(after[k].view(torch.uint8), v.view(torch.uint8)) for k, v in state.items()
    )


@pytest.fixture(scope="module")
def expected_latents(shared_model) -> torch.Tensor:
    """What is drawn on the card where nothing goes wrong."""
    return drawn_on_card(shared_model, OffloadRunner(card_policy("component"), CPU))[0]


def policies(model):
    whole = cost_of(model).all_blocks
    return [
        card_policy("none"),
        card_policy("component"),
        card_policy("stream"),
        card_policy("stream", slots=3),
        card_policy("auto", vram_budget=int(0.7 * whole) + 45_000_000),
        card_policy("auto", vram_budget=10**10),
    ]


@pytest.mark.parametrize("number", range(6))
def test_the_peak_is_as_predicted_and_the_report_adds_up(model, expected_latents, number):
    policy = policies(model)[number]
    runner = OffloadRunner(policy, CPU)
    latents, predicted, counted = drawn_on_card(model, runner)
    assert torch.equal(latents, expected_latents)
    assert counted == pytest.approx(predicted, rel=0.03)
    if policy.vram_budget is not None:
        assert counted <= policy.vram_budget
    part = runner.report.parts["transformer"]
    with LiveBytes() as live:
        placement = placement_on_card(model, CPU)
        placement.evict()
        work = sampling_work(
            model, image_tokens=SIDE * SIDE // 4, text_tokens=40, batch=1, vectors=2
        )
        plan = runner.plan([model], work)
        (m,) = plan.modules
        placement.set_resident(m.resident, m.modulations)
        with placement.running(m.resident, m.slots or 2):
            assert live.live == part.size == plan.weights


def test_parts_that_stay_give_room_when_another_needs_it(model):
    other = quantize(tiny_models.flux_transformer(model.config, seed=1).bfloat16(), "fp8_e4m3fn")
    whole = cost_of(model).all_blocks + cost_of(model).modulations
    runner = OffloadRunner(card_policy("auto", vram_budget=whole + 80_000_000), CPU)
    drawn_on_card(model, runner)
    placed = placement_on_card(model, CPU)
    assert placed.held == whole
    drawn_on_card(other, runner)
    assert placement_on_card(other, CPU).held > 0
    assert placed.held + placement_on_card(other, CPU).held <= whole + 80_000_000
    placed.evict()
    placement_on_card(other, CPU).evict()


def test_memory_that_runs_out_is_planned_again_once(model, expected_latents, caplog):
    for broken in range(3):
        runner = OffloadRunner(card_policy("component"), CPU)
        left = broken

        def full(*_):
            nonlocal left
            left -= 1
            if left == -1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        block = blocks_of(model)[3 * broken]
        handle = block.register_forward_pre_hook(full)
        try:
            latents = drawn_on_card(model, runner)[0]
        finally:
            handle.remove()
        assert torch.equal(latents, expected_latents)
        replans = runner.report.parts["transformer"].replans
        assert replans == int(broken < 2)  # two steps pass each block twice
        assert runner.policy.mode == "component"
    assert "transformer ran out of memory" in caplog.text
    assert "trying once more within" in caplog.text


def test_memory_that_runs_out_twice_is_an_error_and_leaves_nothing_behind(model):
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def full(*_):
        raise torch.OutOfMemoryError("no room")

    handle = model.img_in.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        drawn_on_card(model, OffloadRunner(card_policy("stream"), CPU))
    handle.remove()
    assert placement_on_card(model, CPU).held == 0
    assert all(
        torch.equal(v.view(torch.uint8), state[k].view(torch.uint8))
        for k, v in model.state_dict().items()
    )
