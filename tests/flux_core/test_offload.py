"""Streaming: the same bits as all resident, whatever goes wrong on the way."""

from __future__ import annotations

import random

import pytest
import torch

from flux_core import (
    Control,
    FluxPipeline,
    FluxTransformer,
    OffloadPolicy,
    load_controlnet,
    quantize,
)
from flux_core.offload.modulation import ModulationsAhead
from flux_core.offload.pack import PackedBlock
from flux_core.offload.ring import Ring
from flux_core.offload.streaming import blocks_of, streamed
from flux_core.pipeline import pocket_file
from flux_core.quant import FORMATS, arithmetic_of
from tests import tiny

CPU = torch.device("cpu")
SETTINGS = {"width": 64, "height": 64, "steps": 3, "negative_prompt": "white", "cfg": 2.0}
PRECISIONS = ["bf16", *sorted(FORMATS)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Slots are filled with NaN when they are released, so that a use too late shows."""
    original = Ring.__init__

    def poison(self, blocks, device, slots=2, poison=True):
        original(self, blocks, device, slots, True)

    monkeypatch.setattr(Ring, "__init__", poison)


def drawn(precision: str, policy: OffloadPolicy, controls: bool = False, **options) -> torch.Tensor:
    pipeline = FluxPipeline.from_pocket(precision=precision, policy=policy)
    nets = ()
    if controls:
        net = load_controlnet(pocket_file("controlnet", "_upscaler"), precision=precision)
        cond = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        nets = (Control(net, cond, end=0.6),)
    first = pipeline("a red circle on blue", **SETTINGS | options, controls=nets).images
    second = pipeline("a red circle on blue", **SETTINGS | options, controls=nets).images
    assert torch.equal(first, second)
    return first


@pytest.mark.parametrize("controls", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_policy_gives_the_same_bits_twice(precision, controls):
    expected = drawn(precision, OffloadPolicy("none"), controls)
    for policy in (
        OffloadPolicy("component"),
        OffloadPolicy("stream"),
        OffloadPolicy("stream", vram_budget=2_000_000, slots=3),
    ):
        assert torch.equal(drawn(precision, policy, controls), expected)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "euler_ancestral"])
def test_every_sampler_gives_the_same_bits(sampler):
    a, b = (drawn("int8", OffloadPolicy(m), sampler=sampler) for m in ("none", "stream"))
    assert torch.equal(a, b)


def test_streamed_blocks_leave_only_slots_on_the_device():
    model = quantize(tiny.randomise(FluxTransformer(tiny.DEV)).bfloat16(), "int8")
    blocks = blocks_of(model)
    assert len(blocks) == tiny.DEV.depth + tiny.DEV.depth_single_blocks
    kwargs = tiny.inputs()
    with torch.no_grad():
        expected = model(**kwargs)
        with streamed(model, CPU) as report:
            for _ in range(2):
                assert torch.equal(model(**kwargs), expected)
    assert report.restarts == 0
    assert report.copies == 2 * len(blocks) + 2  # the first of the next step are there already
    assert report.resident < sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / 2
    assert sum(arithmetic_of(model).values()) == len(
        [m for m in model.modules() if type(m).__name__ == "QuantizedLinear"]
    )
    assert torch.equal(model(**kwargs), expected)


def test_a_budget_keeps_the_first_blocks():
    model = tiny.randomise(FluxTransformer(tiny.DEV))
    with streamed(model, CPU, resident=10**9) as report:
        assert report.copies == 0
    one = sum(p.nbytes for p in model.double_blocks[0].parameters())
    with streamed(model, CPU, resident=one) as report:
        assert report.copies == 2  # the two slots are filled at once
        assert "forward" not in model.double_blocks[0].__dict__
        assert "forward" in model.double_blocks[1].__dict__


def test_blocks_out_of_turn_are_fetched_anew():
    blocks = list(tiny.randomise(FluxTransformer(tiny.DEV)).single_blocks)
    packed = [PackedBlock(b, set(), False) for b in blocks]
    ring = Ring(packed, CPU)
    for number in (4, 0, 0, 3, 4, 0):
        slot, twin = ring.enter(number)
        for a, b in zip(twin.parameters(), blocks[number].parameters(), strict=True):
            assert torch.equal(a, b)
        ring.leave(slot)
    assert ring.report.restarts == 3
    with pytest.raises(ValueError, match="has 1 slots, expected at least 2"):
        Ring(packed, CPU, 1)


class BrokenError(Exception):
    pass


def test_two_hundred_interrupts_leave_everything_as_it_was():
    """An error in any block of any step: the next picture is the same to the bit."""
    pipeline = FluxPipeline.from_pocket(precision="int8", policy=OffloadPolicy("stream"))
    settings = SETTINGS | {"steps": 2, "width": 32, "height": 32}
    expected = pipeline("a red circle", **settings).images
    state = {k: v.clone() for k, v in pipeline.transformer.state_dict().items()}
    modules = [m for m in pipeline.transformer.modules() if not list(m.children())]
    rng = random.Random(0)
    raised = 0
    for turn in range(200):
        left = rng.randrange(150)

        def fail(*_):
            nonlocal left
            left -= 1
            if left < 0:
                raise BrokenError

        handle = torch.nn.modules.module.register_module_forward_pre_hook(fail)
        try:
            pipeline("a red circle", **settings)
        except BrokenError:
            raised += 1
        finally:
            handle.remove()
        if turn % 20 == 0:
            assert torch.equal(pipeline("a red circle", **settings).images, expected)
    assert raised > 150
    assert all("forward" not in m.__dict__ for m in pipeline.transformer.modules())
    assert modules and pipeline.transformer.ahead is None
    after = pipeline.transformer.state_dict()
    assert all(
        torch.equal(after[k].view(torch.uint8), v.view(torch.uint8)) for k, v in state.items()
    )


def test_running_out_of_memory_for_a_slot_leaves_the_model_whole(monkeypatch):
    model = tiny.randomise(FluxTransformer(tiny.DEV))
    kwargs = tiny.inputs()
    with torch.no_grad():
        expected = model(**kwargs)

        def full(*_, **__):
            raise torch.OutOfMemoryError("no room")

        with monkeypatch.context() as patch:
            patch.setattr("flux_core.offload.ring.Slot.__init__", full)
            with pytest.raises(torch.OutOfMemoryError), streamed(model, CPU):
                pass
        assert torch.equal(model(**kwargs), expected)
        assert all("forward" not in m.__dict__ for m in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "expected one of none, component, stream, auto"),
        ({"mode": "stream", "slots": 1}, "expected at least 2"),
        ({"mode": "stream", "vram_budget": -1}, "expected 0 or more"),
    ],
)
def test_bad_policies_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OffloadPolicy(**options)


def test_modulations_ahead_are_those_of_the_step_and_unforeseen_ones_are_live():
    model = tiny.randomise(FluxTransformer(tiny.DEV))
    kwargs = tiny.inputs()
    with torch.no_grad():
        vecs = {
            (sigma, "positive"): model.embed_vector(
                torch.full((2,), sigma), kwargs["y"], kwargs["guidance"]
            )
            for sigma in (0.9, 0.5, 0.1)
        }
        ahead = ModulationsAhead(model, vecs)
        for sigma in (0.5, 0.9):
            assert ahead.select((sigma, "positive"))
            given = kwargs | {"timesteps": torch.full((2,), sigma)}
            expected = model(**given)
            model.ahead = ahead
            assert tiny.relative(model(**given), expected) < 1e-5
            model.ahead = None
        assert not ahead.select((0.7, "positive"))


def test_a_long_run_is_foreseen_in_windows(monkeypatch):
    expected = drawn("bf16", OffloadPolicy("none"))
    monkeypatch.setattr("flux_core.offload.modulation.WINDOW", 2)
    found = drawn("bf16", OffloadPolicy("none"))
    assert tiny.relative(found, expected) < 0.02
    assert torch.equal(drawn("bf16", OffloadPolicy("stream")), found)


def test_another_seed_prompt_or_number_of_steps_compiles_nothing_again():
    pipeline = FluxPipeline.from_pocket(precision="int8")
    settings = SETTINGS | {"width": 32, "height": 32}
    pipeline("a red circle", **settings)
    torch._dynamo.reset()
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
    pipeline("a red circle", **settings)
    with torch.compiler.set_stance("fail_on_recompile"):
        pipeline("a green star on white", **settings | {"steps": 5, "seed": 3, "guidance": 2.0})
    torch._dynamo.reset()
