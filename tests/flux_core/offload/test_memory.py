"""Pinned memory."""

from __future__ import annotations

import torch

from flux_core.offload.memory import PINS, Pins
from tests import tiny_models
from tests.flux_core.offload.cpu_as_card import CPU, placement_on_card


def test_pinning_keeps_to_its_budget_and_a_refusal_is_told_once(model, monkeypatch, caplog):
    pins = Pins()
    monkeypatch.setattr("flux_core.offload.host_weights.PINS", pins)
    monkeypatch.setattr(pins, "register", lambda flat: "")
    placement = placement_on_card(model, CPU)
    sizes = [block_weights.size for block_weights in placement.blocks]
    kwargs = tiny_models.inputs()
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
