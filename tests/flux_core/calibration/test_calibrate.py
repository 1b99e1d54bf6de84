"""Models quantized for what their layers read."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from flux_core import (
    OffloadPolicy,
    calibrate,
    load_transformer,
    quantize,
    record_second_moments,
    save_module,
)
from flux_core.offload import OffloadRunner
from flux_core.offload.placement import placement_of
from flux_core.quant import FORMATS, quantized_linears
from tests import tiny_models

CPU = torch.device("cpu")
AS_A_CARD = OffloadPolicy("none", separate_memory=True)


def second_moments(model: nn.Module, kwargs: dict) -> dict[str, torch.Tensor]:
    return record_second_moments(model, lambda: model(**kwargs))


def test_what_a_policy_left_on_the_device_goes_back_first():
    model = tiny_models.flux_transformer().requires_grad_(False)
    kwargs, runner = tiny_models.inputs(), OffloadRunner(AS_A_CARD, CPU)
    owned = {name: p for name, p in model.named_parameters() if name.endswith("bias")}
    run = partial(runner.run, "transformer", [model], lambda _: model(**kwargs))
    run()
    assert placement_of(model, CPU).held and model.img_in.bias is not owned["img_in.bias"]
    with torch.inference_mode():  # as a host runs its nodes
        calibrate(model, "int8", run)
    now = dict(model.named_parameters())
    assert list(quantized_linears(model)) and all(now[n] is p for n, p in owned.items())


class TestModels:
    @pytest.mark.parametrize("name", FORMATS)
    def test_a_calibrated_model_is_nearer_and_its_file_the_same(self, name, tmp_path):
        model = tiny_models.flux_transformer().requires_grad_(False)
        kwargs = tiny_models.inputs()
        expected = model(**kwargs)
        nearest = quantize(copy.deepcopy(model), name)
        quantized = copy.deepcopy(model)
        assert calibrate(quantized, name, lambda: quantized(**kwargs)) is quantized
        lost = [tiny_models.relative(m(**kwargs), expected) for m in (quantized, nearest)]
        assert lost[0] < 0.7 * lost[1]
        path = tmp_path / "made.safetensors"
        save_module(quantized, path)
        again = load_transformer(path, precision="as_stored")
        pairs = zip(quantized_linears(again), quantized_linears(quantized), strict=True)
        assert all(torch.equal(a.codes.float(), b.codes.float()) for a, b in pairs)

    def test_layers_that_were_not_reached_take_the_nearest(self):
        model = tiny_models.flux_transformer().requires_grad_(False)
        known = second_moments(model, tiny_models.inputs())
        name = "single_blocks.0.linear2"
        del known[name]
        weight = model.get_submodule(name).weight
        quantized = quantize(model, "int8", known).get_submodule(name)
        assert torch.equal(quantized.codes, FORMATS["int8"].quantize(weight)["codes"])

    def test_what_does_not_serve_is_refused_and_changes_nothing(self):
        model = tiny_models.flux_transformer().requires_grad_(False)
        known = second_moments(model, tiny_models.inputs())
        name = "double_blocks.1.img_mlp.2"
        for wrong, message in (
            (torch.zeros(1, 4, 4), "moments are of 1 times 4 inputs"),
            (known[name] * torch.nan, "are not finite"),
        ):
            with pytest.raises(ValueError, match=f"{name}: .*{message}"):
                quantize(model, "int8", known | {name: wrong})
            assert not list(quantized_linears(model))
        quantize(model, "int8")
        with pytest.raises(ValueError, match="is quantized to int8.*load it so"):
            second_moments(model, tiny_models.inputs())
