"""Replicas of a module: the same tensors, weights on a device of their own."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from flux_core import quantize, set_compute
from flux_core.offload.blocks import blocks_of
from flux_core.offload.memory import PINS
from flux_core.offload.placement import placement_if_any, placement_of
from flux_core.offload.replicas import forget_idle_replicas, offload_module, replica_of
from tests import tiny_models

CPU, OTHER = torch.device("cpu"), torch.device("cpu", 1)


@pytest.fixture
def model():
    return tiny_models.flux_transformer(tiny_models.ONE_OF_EACH).requires_grad_(False)


def resident(module: nn.Module, device: torch.device):
    placement = placement_of(module, device, True)
    placement.set_resident(range(len(placement.blocks)))
    return placement


def test_it_has_the_module_s_tensors_also_where_those_are_on_a_device(model):
    own = list(model.parameters())
    resident(model, CPU)
    assert next(model.parameters()) is not own[0]
    replica = replica_of(model, OTHER)
    assert replica is not model and list(map(id, replica.parameters())) == list(map(id, own))
    placement = resident(replica, OTHER)
    assert placement.held and placement is not placement_of(model, CPU)
    assert next(replica.parameters()).data_ptr() not in {t.data_ptr() for t in model.parameters()}
    assert replica_of(model, OTHER) is replica and placement.held  # kept between runs


def test_it_is_made_anew_where_the_module_was_changed(model):
    first = replica_of(model, OTHER)
    resident(first, OTHER)
    model.img_in.weight = nn.Parameter(torch.zeros_like(model.img_in.weight), False)
    second = replica_of(model, OTHER)
    assert second is not first and second.img_in.weight is model.img_in.weight
    assert placement_if_any(first) is None
    quantize(model, "int8")
    third = replica_of(model, OTHER)
    block, own = (blocks_of(each)[0] for each in (third, model))
    assert type(block.img_mlp[0]) is type(own.img_mlp[0])
    assert block.img_mlp[0].codes is own.img_mlp[0].codes


def test_it_computes_as_the_module_does_now(model):
    quantize(model, "int8")
    replica = replica_of(model, OTHER)
    layer, own = replica.double_blocks[0].img_mlp[0], model.double_blocks[0].img_mlp[0]
    set_compute(model, "dequantize")
    model.double_blocks[0].compiled = print
    own.kernel_choices["mark"] = None
    assert replica_of(model, OTHER) is replica
    assert layer.compute == "dequantize" and layer.kernel_choices is not own.kernel_choices
    assert "mark" not in layer.kernel_choices


def test_idle_ones_are_forgotten_and_all_go_with_the_module(model):
    idle, busy = replica_of(model, OTHER), replica_of(model, torch.device("cpu", 2))
    placement = resident(busy, torch.device("cpu", 2))
    forget_idle_replicas(model)
    assert replica_of(model, OTHER) is not idle
    assert replica_of(model, torch.device("cpu", 2)) is busy
    offload_module(model)
    assert not placement.held and placement_if_any(busy) is None


def test_they_end_with_their_module():
    model = tiny_models.flux_transformer(tiny_models.ONE_OF_EACH)
    replica = replica_of(model, OTHER)
    resident(replica, OTHER)
    there = weakref.ref(model), weakref.ref(replica)
    del model, replica
    gc.collect()
    assert [each() for each in there] == [None, None]


def test_what_is_pinned_is_pinned_once(model, monkeypatch):
    monkeypatch.setattr(PINS, "register", lambda flat: "")
    monkeypatch.setattr(PINS, "refused", False)
    before = PINS.total
    own = placement_of(model, CPU, True)
    replica = replica_of(model, OTHER)
    other = placement_of(replica, OTHER, True)
    other.pin([0, 1], 10**9, move=False)
    assert PINS.total == before and other.pinned == 0  # it moves nothing by itself
    expected = [t.clone() for t in model.parameters()]
    own.pin([0, 1], 10**9)
    taken = PINS.total - before
    assert taken == own.pinned == own.blocks[0].size + own.blocks[1].size
    other.pin([0, 1], 10**9, move=False)
    assert other.pinned == own.pinned and PINS.total - before == taken
    buffer = torch.empty(other.blocks[0].size, dtype=torch.uint8)
    other.blocks[0].copy_into(buffer)
    flat = own.blocks[0].flat
    assert flat is not None and torch.equal(buffer, flat)
    assert all(torch.equal(a, b) for a, b in zip(replica.parameters(), expected, strict=True))
