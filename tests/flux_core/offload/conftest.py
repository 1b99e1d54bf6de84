"""What the tests of offloading share: slots that show a use too late, and a CPU as a card."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from unittest import mock

import pytest
import torch

from flux_core import (
    quantize,
)
from flux_core.models.config import TransformerConfig
from flux_core.offload.placement import placement_of
from flux_core.offload.ring import Ring
from tests import tiny_models


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Slots are filled with NaN when they are released, so that a use too late shows."""
    original = Ring.__init__

    def poison(self, host_weights, device, slots=2, poison=True, threaded=None):
        original(self, host_weights, device, slots, True, threaded)

    monkeypatch.setattr(Ring, "__init__", poison)


CPU = torch.device("cpu")


placement_on_card = partial(placement_of, separate=True)


@pytest.fixture(scope="module")
def shared_model():
    config = TransformerConfig(
        vec_in_dim=32, context_in_dim=48, hidden_size=768, depth=2, depth_single_blocks=6
    )
    return quantize(
        tiny_models.flux_transformer(config), "fp8_e4m3fn"
    )  # float32: no casts to count


@pytest.fixture
def model(shared_model):
    yield shared_model
    placement_on_card(shared_model, CPU).evict()


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
