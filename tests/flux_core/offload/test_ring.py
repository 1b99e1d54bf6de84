"""Blocks that pass through a few buffers."""

from __future__ import annotations

import pytest
import torch

from flux_core import (
    quantize,
)
from flux_core.lora import load_lora, lora_applied
from flux_core.offload import OffloadRunner
from flux_core.offload.blocks import blocks_of
from flux_core.offload.host_weights import HostWeights
from flux_core.offload.placement import placement_of
from flux_core.offload.ring import Ring
from flux_core.quant import kernels_used
from tests import tiny_models
from tests.flux_core.offload.cpu_as_card import card_policy

CPU = torch.device("cpu")


def test_streamed_blocks_leave_only_slots_on_the_device():
    model = quantize(tiny_models.flux_transformer().bfloat16(), "int8")
    blocks = blocks_of(model)
    assert len(blocks) == tiny_models.DEV.depth + tiny_models.DEV.depth_single_blocks
    kwargs = tiny_models.inputs()
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


@pytest.mark.parametrize("slots", [2, 3])
def test_slots_filled_on_a_thread_hold_the_same_bits(slots):
    """As for blocks that are not pinned, also within ``inference_mode``, which is a thread's."""
    model = tiny_models.flux_transformer()
    kwargs = tiny_models.inputs()
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
    blocks = list(tiny_models.flux_transformer().single_blocks)
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


def test_running_out_of_memory_for_a_slot_leaves_the_model_whole(monkeypatch):
    model = tiny_models.flux_transformer()
    kwargs = tiny_models.inputs()
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


@pytest.mark.parametrize("layers", [["img_mod.lin"], ["txt_mod.lin", "img_attn.proj"]])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_blocks_differ_in_what_is_beside_layers_that_are_computed_ahead(layers, block, tmp_path):
    """Their twin is the same: what is beside a modulation does not travel."""
    model = quantize(tiny_models.flux_transformer().bfloat16(), "int8")
    file = {}
    for layer in layers:
        name = f"double_blocks.{block}.{layer}"
        linear = model.get_submodule(name)
        file[f"{name}.lora_A.weight"] = torch.ones(2, linear.in_features)
        file[f"{name}.lora_B.weight"] = torch.ones(linear.out_features, 2)
    lora = load_lora(tiny_models.save(file, tmp_path / "lora.safetensors"))
    kwargs = tiny_models.inputs()
    runner = OffloadRunner(card_policy("stream"), CPU)
    with torch.no_grad(), lora_applied(model, [(lora, 0.01)]):
        expected = model(**kwargs)
        streamed = runner.run("transformer", [model], lambda _: model(**kwargs))
    assert torch.equal(streamed, expected)
    assert sum(runner.report.parts["transformer"].kernels.values()) > 0
