"""Several devices that draw together: the same bits as one, under every policy, whatever is asked
for; and nothing is left of what went wrong on one of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from flux_core import FluxPipeline, OffloadPolicy, compile_blocks
from flux_core.models.blocks import DoubleStreamBlock
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.blocks import blocks_of, has_attached
from flux_core.offload.placement import placement_of
from flux_core.offload.replicas import replica_of
from flux_core.quant import notices
from flux_core.sampling.hires import Hires
from flux_core.sampling.one_picture import single_picture
from flux_core.sampling.parallel_work import RunCosts
from flux_core.sampling.request import DrawRequest
from flux_core.sampling.run import draw
from flux_core.sampling.settings import SamplingSettings
from flux_core.sampling.shares import Share
from tests import tiny_models
from tests.wild.scenes import FEATURES, Scene

CPU, OTHER = torch.device("cpu"), torch.device("cpu", 1)
POLICIES: dict[str, dict] = {
    "none": {"mode": "none"},
    "component": {"mode": "component"},
    "stream": {"mode": "stream"},
    "auto": {"mode": "auto", "vram_budget": 24_000_000},
}
#: What is asked for: features of ``scenes``.
CASES = (
    ("cfg",),
    ("lora", "lora control", "cfg"),
    ("controlnet", "cfg"),
    ("tiles", "mask", "cfg"),
    ("regions", "regional", "span"),
    ("reference", "cfg"),
    ("adapter", "nag", "sampler"),
)


def policy(devices: str = "", **options) -> OffloadPolicy:
    return OffloadPolicy(separate_memory=True, devices=devices, **options)


def drawn(request: DrawRequest, devices: str = "", **options) -> torch.Tensor:
    runner = OffloadRunner(policy(devices, **options), CPU)
    return draw(runner, [replace(request)])[0]


def request_of(features, folder, batch: int, side: int = 8) -> DrawRequest:
    """A request with features for pictures of a tiny model, the same for any batch."""
    model = tiny_models.flux_transformer(tiny_models.TWO_OF_EACH).requires_grad_(False)
    scene = Scene(model, random.Random(4), folder, 1, side, side, settings={"steps": 2})
    for name in features:
        FEATURES[name](scene)
    one = scene.request()
    return replace(one, latents=one.latents.repeat(batch, 1, 1, 1))


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch):
    monkeypatch.setattr(notices, "_warned", set())


@pytest.mark.parametrize("features", CASES, ids=" ".join)
def test_bits_are_those_of_one_device_under_every_policy(features, tmp_path):
    side = 16 if "tiles" in features else 8
    one, three = (request_of(features, tmp_path, batch, side) for batch in (1, 3))
    alone = drawn(one, mode="component")  # no device is named
    together = drawn(three, "cpu", mode="component")
    for name, options in POLICIES.items():
        assert torch.equal(drawn(one, "cpu,cpu:1", **options), alone), name
    assert torch.equal(drawn(three, "cpu,cpu:1", **POLICIES["auto"]), together)
    if features == ("cfg",):
        assert torch.equal(drawn(three, "cpu,cpu:1,cpu:2,cpu:3", mode="stream"), together)


@pytest.mark.parametrize("mode", ["stream", "auto"])
def test_a_pipeline_draws_a_batch_and_both_halves_and_reports_each_device(mode):
    options = POLICIES[mode] | ({"vram_budget": 14_000_000} if mode == "auto" else {})
    asked = {
        "prompt": ["a red circle", "a blue square"],
        "negative_prompt": "white",
        "cfg": 2.0,
        "width": 32,
        "height": 32,
        "steps": 1,
        "hires": Hires(1.5, steps=1),
    }
    pipeline = FluxPipeline.from_pocket(precision="bf16", policy=policy("cpu", **options))
    expected = pipeline(**asked).images
    for count in (2, 4):
        pipeline.policy = policy(",".join(f"cpu:{n}" for n in range(count)), **options)
        result = pipeline(**asked)
        assert torch.equal(result.images, expected)
        parts = result.report.parts
        ours = parts["transformer"]
        for number in range(1, count):
            other = parts[f"transformer on cpu:{number}"]
            assert other.device == f"cpu:{number}" and other.blocks == ours.blocks
            assert 0 < other.predicted <= ours.predicted and other.seconds > 0
            assert mode != "stream" or other.copies > 0
            assert f"weights on cpu:{number} at once" in str(result.report)
        assert result.report.peak < ours.size * 2 + parts["VAE decoder"].size


def test_devices_draw_at_the_same_time_and_more_than_work_are_told_once(tmp_path, caplog):
    request = request_of(("cfg",), tmp_path, 1)
    replica = replica_of(request.transformer, OTHER)
    meeting = threading.Barrier(2, timeout=20)
    met = []
    handles = []

    def meet(module, *_) -> None:
        met.append(threading.current_thread().name)
        meeting.wait()

    for module in (request.transformer, replica):
        handles.append(module.register_forward_pre_hook(meet))
    placement_of(replica, OTHER, True).set_resident([0])  # or it would be made anew
    for _ in range(2):
        drawn(request, "cpu,cpu:1,cpu:2", mode="none")
    for handle in handles:
        handle.remove()
    assert len(met) == 8 and len(set(met)) == 2
    warnings = [line for line in caplog.messages if "devices are named" in line]
    assert warnings == [
        "3 devices are named, and 2 of them can draw: a step has a share for each picture of a "
        "batch, or two with true guidance (cfg)"
    ]


@pytest.mark.parametrize("mode", ["stream", "none"])
def test_weights_stay_on_every_device_as_the_policy_says(mode, tmp_path):
    request = request_of(("cfg",), tmp_path, 1)
    drawn(request, "cpu,cpu:1", mode=mode)
    replica = replica_of(request.transformer, OTHER)
    held = placement_of(replica, OTHER).held
    own = placement_of(request.transformer, CPU).held
    assert held == own and bool(held) == (mode == "none")
    for ours, other in zip(request.transformer.state_dict(), replica.state_dict(), strict=True):
        assert ours == other


class BrokenError(Exception):
    pass


def fault(call: int, error: Exception) -> Callable[..., None]:
    """Raises an error at one of its calls, of whatever thread."""
    lock, calls = threading.Lock(), 0

    def count(*_: object) -> None:
        nonlocal calls
        with lock:
            calls += 1
            now = calls == call
        if now:
            raise error

    return count


@pytest.mark.parametrize("mode", ["stream", "none"])
def test_faults_on_any_device_leave_everything_as_it_was(mode, tmp_path, monkeypatch):
    request = request_of(("lora", "controlnet", "cfg"), tmp_path, 1)
    expected = drawn(request, mode="component")
    state = {name: tensor.clone() for name, tensor in request.transformer.state_dict().items()}
    raised = recovered = 0
    original = DoubleStreamBlock.forward
    for call in range(1, 17, 3):
        memory = call % 2 == 1
        error = torch.OutOfMemoryError("no room") if memory else BrokenError()
        count = fault(call, error)

        def forward(self, *args, count=count, **kwargs):
            count()
            return original(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(DoubleStreamBlock, "forward", forward)
            try:
                runner = OffloadRunner(policy("cpu,cpu:1", mode=mode), CPU)
                (latents,) = draw(runner, [replace(request)])
                assert torch.equal(latents, expected)
                again = runner.report.parts["transformer on cpu:1"].replans
                assert again == runner.report.parts["transformer"].replans
                recovered += again
            except BrokenError:
                raised += 1
        assert not any(t.name.startswith("fluxfit-cpu") for t in threading.enumerate())
        other = replica_of(request.transformer, OTHER)
        for module in (request.transformer, other):
            assert module.precomputed is None and not has_attached(module)
            assert all("forward" not in layer.__dict__ for layer in module.modules())
        assert torch.equal(drawn(request, "cpu,cpu:1", mode=mode), expected)
    assert raised >= 2 and recovered >= 2
    for module in (request.transformer, other):
        placement_of(module, CPU if module is not other else OTHER).evict()
        assert all(torch.equal(state[name], t) for name, t in module.state_dict().items())


def test_an_interrupt_between_windows_ends_all_devices(tmp_path):
    request = request_of(("tiles", "cfg"), tmp_path, 1, side=16)
    expected = drawn(request)
    interrupted = replace(request, between=fault(3, BrokenError()))
    with pytest.raises(BrokenError):
        drawn(interrupted, "cpu,cpu:1", mode="stream")
    assert not any(t.name.startswith("fluxfit-cpu") for t in threading.enumerate())
    assert torch.equal(drawn(request, "cpu,cpu:1", mode="stream"), expected)


@pytest.mark.parametrize("features", [("reference", "cfg"), ("tiles", "mask")])
def test_memory_of_a_batch_drawn_one_by_one_is_counted(features, tmp_path):
    request = request_of(features, tmp_path, 3, side=24)
    runner = OffloadRunner(policy("cpu", mode="component"), CPU)
    with LiveBytes() as counted:
        draw(runner, [replace(request)])
    predicted = runner.report.parts["transformer"].predicted
    assert counted.peak == pytest.approx(predicted, rel=0.05)


def test_a_further_device_takes_what_its_shares_take_alone(tmp_path):
    request = request_of(("lora", "cfg"), tmp_path, 3)
    both = [Share(1), Share(1, True)]
    alone = single_picture(request, 1).work
    costs = RunCosts(request)
    assert costs.share_work(both, first=False) == alone
    assert costs.share_work(both, first=True).activations > alone.activations
    more = costs.share_work([*both, Share(2)], first=False)
    assert alone.activations < more.activations < 2 * alone.activations


def test_compiled_blocks_are_compiled_on_every_device(tmp_path):
    request = request_of((), tmp_path, 2)
    expected = drawn(request, "cpu", mode="none")
    calls = []

    def backend(graph, example_inputs):
        calls.append(threading.current_thread().name)
        return graph.forward

    torch.compiler.reset()
    for block in blocks_of(request.transformer):
        block.compiled = torch.compile(type(block).forward, backend=backend, dynamic=False)
    try:
        assert torch.equal(drawn(request, "cpu,cpu:1", mode="none"), expected)
        assert calls
    finally:
        compile_blocks(request.transformer, "")
        torch.compiler.reset()


def test_settings_of_no_steps_draw_nothing(tmp_path):
    request = replace(request_of((), tmp_path, 2), settings=SamplingSettings(sigmas=torch.zeros(0)))
    assert torch.equal(drawn(request, "cpu,cpu:1"), request.latents)
