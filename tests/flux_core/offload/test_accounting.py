"""Bytes: what is predicted, what is reported, and what an allocator counts, on a CPU as a card."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from flux_core import AutoEncoder, Conditioning, FluxTransformer, OffloadPolicy, quantize
from flux_core.models.config import TransformerConfig
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.blocks import blocks_of
from flux_core.offload.memory import PINS, Pins
from flux_core.offload.placement import placement_of
from flux_core.offload.plan import cost_of
from flux_core.offload.workload import sampling_work
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from flux_core.sampling.vae import decode, vae_work
from tests import tiny_models as tiny

CPU = torch.device("cpu")
SIDE = 48  # latents: 576 tokens


#: The CPU with memory of its own: weights are copied there, and no copy lane runs ahead.
card_policy = partial(OffloadPolicy, separate_memory=True)
placement_on_card = partial(placement_of, separate=True)


@pytest.fixture(scope="module")
def shared_model():
    config = TransformerConfig(
        vec_in_dim=32, context_in_dim=48, hidden_size=768, depth=2, depth_single_blocks=6
    )
    return quantize(tiny.randomise(FluxTransformer(config)).bfloat16(), "fp8_e4m3fn")


@pytest.fixture
def model(shared_model):
    yield shared_model
    placement_on_card(shared_model, CPU).evict()


def drawn(model, runner: OffloadRunner) -> tuple[torch.Tensor, int, int]:
    """Latents, the plan's peak, and the bytes that an allocator counted at most."""
    generator = torch.Generator().manual_seed(0)
    text = Conditioning(
        torch.randn(1, 40, 48, generator=generator), torch.randn(1, 32, generator=generator)
    )
    start = torch.zeros(1, 16, SIDE, SIDE)
    request = DrawRequest(model, text, start, SamplingSettings(steps=2))
    counted = LiveBytes()
    plans = []

    def draw(plan):
        plans.append(plan)
        return sample(request)

    with counted:
        latents = runner.run("transformer", [model], draw, request.work)
    return latents, plans[-1].peak, counted.peak


def policies(model):
    whole = cost_of(model).all_blocks
    return [
        card_policy("none"),
        card_policy("component"),
        card_policy("stream"),
        card_policy("stream", slots=3),
        card_policy("auto", vram_budget=int(0.7 * whole) + 30_000_000),
        card_policy("auto", vram_budget=10**10),
    ]


@pytest.mark.parametrize("number", range(6))
def test_the_peak_is_as_predicted_and_the_report_adds_up(model, number):
    policy = policies(model)[number]
    expected = drawn(model, OffloadRunner(card_policy("component"), CPU))[0]
    runner = OffloadRunner(policy, CPU)
    latents, predicted, counted = drawn(model, runner)
    assert torch.equal(latents, expected)
    assert counted == pytest.approx(predicted, rel=0.03)
    if policy.vram_budget is not None:
        assert counted <= policy.vram_budget
    part = runner.report.parts["transformer"]
    with LiveBytes() as live:
        placement = placement_on_card(model, CPU)
        placement.evict()
        work = sampling_work(
            model, [], image_tokens=SIDE * SIDE // 4, text_tokens=40, batch=1, vectors=2
        )
        plan = runner.plan([model], work)
        (m,) = plan.modules
        placement.set_resident(m.resident, m.modulations)
        with placement.running(m.resident, m.slots or 2):
            assert live.live == part.size == plan.weights


def test_a_vae_takes_what_was_predicted_and_tiles_where_it_must():
    vae = tiny.randomise(AutoEncoder(tiny.VAE))
    latents = torch.randn(1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    work = vae_work(vae, 64, 64, 1)
    work.fit(0)  # counted before, as the counting itself would be counted too
    pictures, tiles = [], []
    for budget in (None, cost_of(vae).rest + work.activations // 3):
        runner = OffloadRunner(card_policy("component", vram_budget=budget), CPU)
        with torch.no_grad(), LiveBytes() as counted:
            pictures.append(
                runner.run("VAE", [vae], lambda plan: decode(vae, latents, plan, CPU), work)
            )
        tiles.append(runner.report.parts["VAE"].tile)
        if budget is None:
            assert counted.peak == pytest.approx(cost_of(vae).rest + work.activations, rel=0.03)
        else:  # the result is put together on the host, which here is the same
            assert counted.peak - 3 * pictures[0].nbytes <= budget
    assert tiles == [None, 32] and not torch.equal(*pictures)
    assert "in tiles of 256 pixels, blended" in str(runner.report)
    assert tiny.relative(pictures[1], pictures[0]) < 0.3


def test_parts_that_stay_give_room_when_another_needs_it(model):
    other = quantize(tiny.randomise(FluxTransformer(model.config), seed=1).bfloat16(), "int8")
    whole = cost_of(model).all_blocks + cost_of(model).modulations
    runner = OffloadRunner(card_policy("auto", vram_budget=whole + 80_000_000), CPU)
    drawn(model, runner)
    placed = placement_on_card(model, CPU)
    assert placed.held == whole
    drawn(other, runner)
    assert placement_on_card(other, CPU).held > 0
    assert placed.held + placement_on_card(other, CPU).held <= whole + 80_000_000
    placed.evict()
    placement_on_card(other, CPU).evict()


def test_what_is_on_the_device_stays_and_is_not_copied_again(model):
    runner = OffloadRunner(card_policy("none"), CPU)
    drawn(model, runner)
    before = {id(p) for p in model.parameters()}
    with LiveBytes() as counted, runner.hold("transformer", model):
        assert counted.live == 0
    assert {id(p) for p in model.parameters()} == before
    assert placement_on_card(model, CPU).shrink(1) > 0
    placement_on_card(model, CPU).evict()
    assert placement_on_card(model, CPU).held == 0


def test_a_module_that_was_changed_on_the_device_keeps_its_change(model):
    with OffloadRunner(card_policy("none"), CPU).hold("transformer", model):
        changed = torch.nn.Parameter(torch.ones_like(model.img_in.bias))
        model.img_in.bias = changed
    placement = placement_on_card(model, CPU)
    assert model.img_in.bias is changed and placement.held == 0


def test_memory_that_runs_out_is_planned_again_once(model, caplog):
    expected = drawn(model, OffloadRunner(card_policy("component"), CPU))[0]
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
            latents = drawn(model, runner)[0]
        finally:
            handle.remove()
        assert torch.equal(latents, expected)
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
        drawn(model, OffloadRunner(card_policy("stream"), CPU))
    handle.remove()
    assert placement_on_card(model, CPU).held == 0
    assert all(
        torch.equal(v.view(torch.uint8), state[k].view(torch.uint8))
        for k, v in model.state_dict().items()
    )


def test_pinning_keeps_to_its_budget_and_a_refusal_is_told_once(model, monkeypatch, caplog):
    pins = Pins()
    monkeypatch.setattr("flux_core.offload.host_weights.PINS", pins)
    monkeypatch.setattr(pins, "register", lambda flat: "")
    placement = placement_on_card(model, CPU)
    sizes = [block_weights.size for block_weights in placement.blocks]
    kwargs = tiny.inputs()
    with torch.no_grad():
        kwargs |= {"txt": torch.randn(2, 5, 48), "y": torch.randn(2, 32)}
        expected = model(**kwargs)
        placement.pin(range(8), sum(sizes[:3]) + 5)
        assert placement.pinned == pins.total == sum(sizes[:3])
        assert torch.equal(model(**kwargs), expected)
        with placement.running(()):
            assert torch.equal(model(**kwargs), expected)
    assert all(block_weights.unchanged for block_weights in placement.host_weights)
    monkeypatch.setattr(pins, "register", lambda flat: "not permitted")
    placement.pin(range(8), 10**12)
    placement.pin(range(8), 10**12)
    assert caplog.text.count("cannot be pinned") == 1
    assert PINS.total == 0
    del placement, model
