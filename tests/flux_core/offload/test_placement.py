"""One module's weights: what stays, what passes, what is attached for a run."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from flux_core import (
    compile_blocks,
    quantize,
)
from flux_core.models.compile import compiled_forward
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.blocks import blocks_of
from flux_core.offload.placement import placement_of
from flux_core.quant import FORMATS
from tests import tiny_models
from tests.flux_core.offload.cpu_as_card import CPU, card_policy, drawn_on_card, placement_on_card

PRECISIONS = ["bf16", *sorted(FORMATS)]


def test_blocks_that_stay_pass_no_ring():
    model = tiny_models.flux_transformer()
    kwargs = tiny_models.inputs()
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
    model = quantize(tiny_models.flux_transformer().requires_grad_(False), precision)
    torch.manual_seed(0)
    for block in model.single_blocks[1:4]:
        block.linear2 = LinearBranch(block.linear2).to(model.dtype).requires_grad_(False)
    kwargs = tiny_models.inputs()
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


def test_what_is_on_the_device_stays_and_is_not_copied_again(model):
    runner = OffloadRunner(card_policy("none"), CPU)
    drawn_on_card(model, runner)
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
