"""What layers read, by their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flux_core import (
    load_t5,
    record_second_moments,
)
from flux_core.calibration.observer import observe
from flux_core.offload.placement import placement_of
from flux_core.pocket import pocket_file
from tests import tiny_models

CPU = torch.device("cpu")


def second_moments(model: nn.Module, kwargs: dict) -> dict[str, torch.Tensor]:
    return record_second_moments(model, lambda: model(**kwargs))


class TestObserving:
    @pytest.mark.parametrize("resident", [(), {0, 3}])
    def test_streamed_layers_are_observed_by_their_names(self, resident):
        model = tiny_models.flux_transformer().requires_grad_(False)
        kwargs = tiny_models.inputs()
        expected = second_moments(model, kwargs)
        names = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and "_blocks" in n}
        assert set(expected) == names
        with placement_of(model, CPU).running(resident, 2, poison=True):
            streamed = second_moments(model, kwargs)
        assert set(streamed) == names
        assert all(torch.equal(streamed[name], expected[name]) for name in names)

    def test_so_are_those_of_t5(self):
        model = load_t5(pocket_file("text_encoders", "_t5"), precision="fp32")
        ids = torch.arange(12)[None] % 7
        expected = record_second_moments(model, lambda: model(ids))
        with placement_of(model, CPU).running((), 2, poison=True):
            streamed = record_second_moments(model, lambda: model(ids))
        assert expected and set(streamed) == set(expected)
        assert all(torch.equal(streamed[name], expected[name]) for name in expected)

    def test_nothing_is_left_on_the_model(self):
        model = tiny_models.flux_transformer()
        with pytest.raises(RuntimeError, match="stop"), observe(model, lambda *_: None):
            raise RuntimeError("stop")
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
