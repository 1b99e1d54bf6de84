"""What the tests of offloading share: slots that show a use too late, and a CPU as a card."""

from __future__ import annotations

import pytest

from flux_core import quantize
from flux_core.models.config import TransformerConfig
from flux_core.offload.ring import Ring
from tests import tiny_models
from tests.flux_core.offload.cpu_as_card import CPU, placement_on_card


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Slots are filled with NaN when they are released, so that a use too late shows."""
    original = Ring.__init__

    def poison(self, host_weights, device, slots=2, poison=True, threaded=None):
        original(self, host_weights, device, slots, True, threaded)

    monkeypatch.setattr(Ring, "__init__", poison)


@pytest.fixture(scope="module")
def shared_model():
    """A transformer of which streaming saves something; opened once for a file of tests."""
    config = TransformerConfig(
        vec_in_dim=32, context_in_dim=48, hidden_size=768, depth=2, depth_single_blocks=6
    )
    # in float32, because some CPUs cast 16 bits to it, which counts
    return quantize(tiny_models.flux_transformer(config), "fp8_e4m3fn")


@pytest.fixture
def model(shared_model):
    """The same, with nothing left on the device behind it."""
    yield shared_model
    placement_on_card(shared_model, CPU).evict()
