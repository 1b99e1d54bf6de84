"""Codes chosen for what layers read."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flux_core import (
    FluxTransformer,
    OffloadPolicy,
    calibrate,
    load_t5,
    load_transformer,
    quantize,
    record_second_moments,
    save_module,
)
from flux_core.calibration.observer import observing
from flux_core.offload import OffloadRunner
from flux_core.offload.placement import placement_of
from flux_core.pipeline import pocket_file
from flux_core.quant import FORMATS, quantized_linears
from flux_core.quant.gptq import damped, gptq_codes, gptq_quantize, loss, second_moments_of
from tests import tiny_models as tiny

CPU = torch.device("cpu")


def correlated(tokens: int, width: int, rank: int = 8) -> torch.Tensor:
    """Inputs that go together: a few directions and a little noise."""
    return torch.randn(tokens, rank) @ torch.randn(rank, width) + 0.1 * torch.randn(tokens, width)


def output_error(format, tensors, weight, x) -> float:
    back = format.dequantize(tensors, torch.float32)
    return tiny.relative(x @ back.T, x @ weight.T)


@pytest.mark.parametrize("width", [256, 512, 48])
@pytest.mark.parametrize("name", FORMATS)
def test_less_is_lost_on_inputs_that_were_not_seen(name, width):
    torch.manual_seed(0)
    format, weight = FORMATS[name], 0.1 * torch.randn(64, width)
    x = correlated(2048, width)
    seen, other = x[:1024], x[1024:]
    found = gptq_quantize(format, weight, second_moments_of(seen) / len(seen))
    nearest = format.quantize(weight)
    assert found["codes"].dtype == format.storage and found["codes"].shape == weight.shape
    if format.scaled:
        assert torch.equal(found["scale"], nearest["scale"])
    lost = [output_error(format, tensors, weight, other) for tensors in (found, nearest)]
    assert lost[0] < 0.6 * lost[1]


@pytest.mark.parametrize("name", FORMATS)
def test_inputs_that_do_not_go_together_take_the_nearest(name):
    format, weight = FORMATS[name], torch.randn(16, 512)
    found, scale = gptq_codes(format, weight, 3.0 * torch.eye(256).expand(2, 256, 256))
    tensors = format.quantize(weight)
    nearest, expected = tensors["codes"], tensors.get("scale")
    # rotated there and back the identity is one to rounding, and a tie may fall either way
    assert (found.float() != nearest.float()).float().mean() < 1e-3
    assert (scale is None and expected is None) or torch.equal(scale, expected)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.integers(0, 2**31), st.sampled_from([16, 48, 256, 512]))
def test_no_row_loses_more_and_every_code_is_finite(name, seed, width):
    torch.manual_seed(seed)
    format, weight = FORMATS[name], torch.randn(6, width)
    weight[0], weight[1, 0], weight[2] = 0, 1e6, 1e-39
    x = correlated(64, width)
    x[:, 3] = 0
    x[:, 5] *= 1e3
    second_moments = second_moments_of(x) / len(x)
    codes, scale = gptq_codes(format, weight, second_moments)
    nearest = format.quantize(weight)["codes"]
    assert codes.float().isfinite().all()
    scaled, _ = format.prepare(weight)
    turned = format.rotate(format.rotate(second_moments).transpose(1, 2))
    assert (loss(scaled, codes, turned) <= loss(scaled, nearest, turned)).all()
    assert scale is None or scale.isfinite().all()


def test_inputs_that_were_all_zero_serve():
    weight = torch.randn(4, 64)
    format = FORMATS["int8"]
    assert torch.equal(damped(torch.zeros(1, 64, 64)), torch.eye(64)[None])
    codes, _ = gptq_codes(format, weight, torch.zeros(1, 64, 64))
    assert torch.equal(codes, format.quantize(weight)["codes"])


def second_moments(model: nn.Module, kwargs: dict) -> dict[str, torch.Tensor]:
    return record_second_moments(model, lambda: model(**kwargs))


class TestListening:
    @pytest.mark.parametrize("resident", [(), {0, 3}])
    def test_streamed_layers_are_heard_by_their_names(self, resident):
        model = tiny.randomise(FluxTransformer(tiny.DEV)).requires_grad_(False)
        kwargs = tiny.inputs()
        expected = second_moments(model, kwargs)
        names = {n for n, m in model.named_modules()
                 if isinstance(m, nn.Linear) and "_blocks" in n}  # fmt: skip
        assert set(expected) == names
        with placement_of(model, CPU).running(resident, 2, poison=True):
            found = second_moments(model, kwargs)
        assert set(found) == names
        assert all(torch.equal(found[name], expected[name]) for name in names)

    def test_so_are_those_of_t5(self):
        model = load_t5(pocket_file("text_encoders", "_t5"), precision="fp32")
        ids = torch.arange(12)[None] % 7
        expected = record_second_moments(model, lambda: model(ids))
        with placement_of(model, CPU).running((), 2, poison=True):
            found = record_second_moments(model, lambda: model(ids))
        assert expected and set(found) == set(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_nothing_is_left_on_the_model(self):
        model = tiny.randomise(FluxTransformer(tiny.DEV))
        with pytest.raises(RuntimeError, match="stop"), observing(model, lambda *_: None):
            raise RuntimeError("stop")
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_what_a_policy_left_on_the_device_goes_back_first(monkeypatch):
    monkeypatch.setattr(
        "flux_core.offload.host_weights.needs_copy", lambda *_: True
    )  # a CPU as a card
    model = tiny.randomise(FluxTransformer(tiny.DEV)).requires_grad_(False)
    kwargs, runner = tiny.inputs(), OffloadRunner(OffloadPolicy("none"), CPU)
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
        model = tiny.randomise(FluxTransformer(tiny.DEV)).requires_grad_(False)
        kwargs = tiny.inputs()
        expected = model(**kwargs)
        nearest = quantize(copy.deepcopy(model), name)
        made = copy.deepcopy(model)
        assert calibrate(made, name, lambda: made(**kwargs)) is made
        lost = [tiny.relative(m(**kwargs), expected) for m in (made, nearest)]
        assert lost[0] < 0.7 * lost[1]
        path = tmp_path / "made.safetensors"
        save_module(made, path)
        again = load_transformer(path, precision="as_stored")
        pairs = zip(quantized_linears(again), quantized_linears(made), strict=True)
        assert all(torch.equal(a.codes.float(), b.codes.float()) for a, b in pairs)

    def test_layers_that_were_not_reached_take_the_nearest(self):
        model = tiny.randomise(FluxTransformer(tiny.DEV)).requires_grad_(False)
        known = second_moments(model, tiny.inputs())
        name = "single_blocks.0.linear2"
        del known[name]
        weight = model.get_submodule(name).weight
        made = quantize(model, "int8", known).get_submodule(name)
        assert torch.equal(made.codes, FORMATS["int8"].quantize(weight)["codes"])

    def test_what_does_not_serve_is_refused_and_changes_nothing(self):
        model = tiny.randomise(FluxTransformer(tiny.DEV)).requires_grad_(False)
        known = second_moments(model, tiny.inputs())
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
            second_moments(model, tiny.inputs())
