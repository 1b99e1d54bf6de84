"""Streaming: the same bits as all resident, whatever goes wrong on the way."""

from __future__ import annotations

import random

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from flux_core import (
    Control,
    FluxPipeline,
    FluxTransformer,
    OffloadPolicy,
    compile_blocks,
    load_controlnet,
    quantize,
)
from flux_core.models.compile import compiled_forward
from flux_core.offload.blocks import blocks_of
from flux_core.offload.host_weights import HostWeights
from flux_core.offload.memory import device_buffer
from flux_core.offload.modulations import PrecomputedModulations
from flux_core.offload.placement import placement_of
from flux_core.offload.ring import Ring
from flux_core.pocket import pocket_file
from flux_core.quant import FORMATS, kernels_used
from tests import tiny_models as tiny

CPU = torch.device("cpu")
SETTINGS = {"width": 64, "height": 64, "steps": 3, "negative_prompt": "white", "cfg": 2.0}
PRECISIONS = ["bf16", *sorted(FORMATS)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Slots are filled with NaN when they are released, so that a use too late shows."""
    original = Ring.__init__

    def poison(self, host_weights, device, slots=2, poison=True, threaded=None):
        original(self, host_weights, device, slots, True, threaded)

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
        OffloadPolicy("stream", vram_budget=14_000_000, slots=3),
        OffloadPolicy("auto", vram_budget=13_000_000),
        OffloadPolicy("component", parts={"transformer": "stream", "clip_l": "none"}),
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
        with placement_of(model, CPU).running(()) as ring:
            for _ in range(2):
                assert torch.equal(model(**kwargs), expected)
            ring.wait()
        assert ring.restarts == 0
        assert ring.copies == 2 * len(blocks) + 2  # the first of the next step are there already
        assert ring.size < sum(t.nbytes for t in (*model.parameters(), *model.buffers())) / 2
        assert sum(kernels_used(model).values()) == len(
            [m for m in model.modules() if type(m).__name__ == "QuantizedLinear"]
        )
        assert torch.equal(model(**kwargs), expected)


def test_blocks_that_stay_pass_no_ring():
    model = tiny.randomise(FluxTransformer(tiny.DEV))
    kwargs = tiny.inputs()
    with torch.no_grad():
        expected = model(**kwargs)
        with placement_of(model, CPU).running({0, 4, 5}) as ring:
            assert len(ring.host_weights) == 5
            assert "forward" not in model.double_blocks[0].__dict__
            assert "forward" in model.double_blocks[1].__dict__
            assert torch.equal(model(**kwargs), expected)
        assert "forward" not in model.double_blocks[1].__dict__
        with placement_of(model, CPU).running(range(8)) as ring:
            assert ring is None


@pytest.mark.parametrize("slots", [2, 3])
def test_slots_filled_on_a_thread_hold_the_same_bits(slots):
    """As for blocks that are not pinned, also within ``inference_mode``, which is a thread's."""
    model = tiny.randomise(FluxTransformer(tiny.DEV))
    kwargs = tiny.inputs()
    with torch.inference_mode():
        expected = model(**kwargs)
        host_weights = placement_of(model, CPU).blocks
        ring = Ring(host_weights, CPU, slots, threaded=True)
        for number, block_weights in enumerate(host_weights):
            block_weights.module.forward = lambda *a, n=number: ring.run(n, *a)
        try:
            for _ in range(5):
                assert torch.equal(model(**kwargs), expected)
        finally:
            for block_weights in host_weights:
                del block_weights.module.forward
            ring.close()
    assert ring.restarts == 0


def test_blocks_out_of_turn_are_fetched_anew():
    blocks = list(tiny.randomise(FluxTransformer(tiny.DEV)).single_blocks)
    host_weights = [HostWeights(b, set()) for b in blocks]
    ring = Ring(host_weights, CPU)
    for number in (4, 0, 0, 3, 4, 0):
        slot, twin = ring.enter(number)
        for a, b in zip(twin.parameters(), blocks[number].parameters(), strict=True):
            assert torch.equal(a, b)
        ring.leave(slot)
    assert ring.restarts == 3
    with pytest.raises(ValueError, match="has 1 slots, expected at least 2"):
        Ring(host_weights, CPU, 1)


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
def test_two_hundred_faults_leave_everything_as_it_was(mode, monkeypatch):
    """Interrupts and failing allocations anywhere in a run, a quarter of them under each mode: the
    memory is back, and the next picture is the same to the bit."""
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
    for turn in range(50):
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
            except BrokenError:
                raised += 1
            finally:
                handle.remove()
        assert all("forward" not in m.__dict__ for part in parts for m in part.modules())
        assert pipeline.transformer.precomputed is None
        if mode in ("component", "stream"):
            assert [placement_of(part, CPU).held for part in parts] == baseline == [0] * 4
        assert torch.equal(pipeline("a red circle", **settings).images, expected)
    assert raised > 15 and recovered > 15
    assert [placement_of(part, CPU).held for part in parts] == baseline
    for part in parts:
        placement_of(part, CPU).evict()
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
            with pytest.raises(torch.OutOfMemoryError), placement_of(model, CPU).running(()):
                pass
        assert torch.equal(model(**kwargs), expected)
        assert all("forward" not in m.__dict__ for m in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "expected one of auto, none, component, stream"),
        ({"mode": "stream", "slots": 1}, "expected at least 2"),
        ({"mode": "stream", "vram_budget": -1}, "vram_budget is -1 bytes, expected 0 or more"),
        ({"ram_budget": -1}, "ram_budget is -1 bytes, expected 0 or more"),
        ({"parts": {"t5": "fast"}}, "t5 mode is 'fast'"),
        ({"parts": {"unet": "none"}}, "part is 'unet', expected one of transformer"),
    ],
)
def test_bad_policies_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OffloadPolicy(**options)


def test_precomputed_modulations_are_those_of_the_step_and_others_are_live():
    model = tiny.randomise(FluxTransformer(tiny.DEV))
    kwargs = tiny.inputs()
    with torch.no_grad():
        vecs = {
            (sigma, "positive"): model.embed_vector(
                torch.full((2,), sigma), kwargs["y"], kwargs["guidance"]
            )
            for sigma in (0.9, 0.5, 0.1)
        }
        precomputed = PrecomputedModulations(model, vecs)
        for sigma in (0.5, 0.9):
            assert precomputed.select((sigma, "positive"))
            given = kwargs | {"timesteps": torch.full((2,), sigma)}
            expected = model(**given)
            model.precomputed = precomputed
            assert tiny.relative(model(**given), expected) < 1e-5
            model.precomputed = None
        assert not precomputed.select((0.7, "positive"))


def test_a_long_run_is_precomputed_in_windows(monkeypatch):
    expected = drawn("bf16", OffloadPolicy("none"))
    monkeypatch.setattr("flux_core.offload.modulations.WINDOW", 2)
    latents_drawn = drawn("bf16", OffloadPolicy("none"))
    assert tiny.relative(latents_drawn, expected) < 0.02
    assert torch.equal(drawn("bf16", OffloadPolicy("stream")), latents_drawn)


class LinearBranch(torch.nn.Module):
    """A layer with a low-rank branch beside it, as a LoRA adds."""

    def __init__(self, layer: torch.nn.Module, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer
        self.down = torch.nn.Linear(layer.in_features, rank, bias=False)
        self.up = torch.nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_side_branches_and_compiled_blocks_stream_to_the_same_bits(precision):
    model = quantize(tiny.randomise(FluxTransformer(tiny.DEV)).requires_grad_(False), precision)
    torch.manual_seed(0)
    for block in model.single_blocks[1:4]:
        block.linear2 = LinearBranch(block.linear2).to(model.dtype).requires_grad_(False)
    kwargs = tiny.inputs()
    counter = CompileCounter()
    with torch.no_grad():
        expected = model(**kwargs)
        placement = placement_of(model, CPU)
        for compiled in (False, True):
            if compiled:
                torch._dynamo.reset()
                compiled_forward.cache_clear()
                compile_blocks(model, counter)
                assert torch.equal(model(**kwargs), expected)
            for resident, slots in (((), 2), ({0, 4, 5}, 3)):
                with placement.running(resident, slots) as ring:
                    assert all(torch.equal(model(**kwargs), expected) for _ in range(2))
                assert ring.restarts == 0
    assert counter.frame_count == 3  # double blocks, single ones without and with a branch
    compile_blocks(model, "")
    assert all(block.compiled is None for block in blocks_of(model))


def test_a_prompt_that_is_known_loads_no_encoder():
    pipeline = FluxPipeline.from_pocket(policy=OffloadPolicy("component"))
    first = pipeline("a red circle", **SETTINGS)
    again = pipeline("a red circle", **SETTINGS)
    assert "text encoders" in first.report.parts and "text encoders" not in again.report.parts
    assert torch.equal(first.images, again.images)
    both = pipeline(["a red circle", "a blue star"], batch_size=2, **SETTINGS)
    assert "text encoders" in both.report.parts
    encoders = pipeline.text_encoders
    assert encoders.cached("a red circle") is not None
    assert encoders.cached("a red circle", "another for CLIP") is None
    assert encoders.cached("a red circle", t5_length=8) is None
    quantize(encoders.t5, "int8")
    quantize(encoders.clip_l, "int8")
    assert encoders.cached("a red circle") is None, "the encoders are others now"


def test_the_oldest_prompts_are_forgotten(monkeypatch):
    monkeypatch.setattr("flux_core.models.text_encoders.CACHED_PROMPTS", 2)
    encoders = FluxPipeline.from_pocket().text_encoders
    for prompt in ("a", "b", "c"):
        encoders.encode_cached(prompt)
    assert encoders.cached("a") is None and encoders.cached("c") is not None


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
