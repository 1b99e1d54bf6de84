"""A four-bit format that is defined here alone: no other file may need to know of it."""

from __future__ import annotations

import logging

import pytest
import torch

from flux_core import FluxTransformer, PrecisionPlan, load_transformer, quantize
from flux_core.calibration.sensitivity import choose_plan, layer_errors, record_inputs
from flux_core.checkpoint.inspect import describe_file
from flux_core.checkpoint.save import save_module
from flux_core.lora import load_lora, lora_applied
from flux_core.lora.branch import float_weight
from flux_core.offload.placement import placement_of
from flux_core.quant import FORMATS, Format, QuantizedLinear, TensorSpec, quantized_names
from flux_core.quant.gptq import second_moments_of
from flux_core.quant.kernels import Kernel
from tests import tiny_models

LAYER = "double_blocks.0.img_attn.qkv"


class PackedInt4(Format):
    """Two codes a byte, a scale for 16 weights and one for the tensor."""

    name = "toy4"

    def tensors(self, out_features, in_features):
        return {
            "packed": TensorSpec((out_features, in_features // 2), torch.uint8, "weight"),
            "block_scale": TensorSpec(
                (out_features, in_features // 16), torch.bfloat16, "weight_scale"
            ),
            "tensor_scale": TensorSpec((), torch.float32, "weight_scale_2"),
        }

    def quantize(self, weight):
        blocks = weight.float().unflatten(1, (-1, 16))
        largest = blocks.abs().amax(-1)
        whole = largest.max().clamp_min(1e-30)
        scale = (largest / whole / 7).clamp_min(1e-6).bfloat16()
        codes = (blocks / (scale.float() * whole)[..., None]).round().clamp(-7, 7) + 8
        low, high = codes.flatten(1).to(torch.uint8).unflatten(1, (-1, 2)).unbind(-1)
        return {"packed": low | high << 4, "block_scale": scale, "tensor_scale": whole}

    def dequantize(self, tensors, dtype):
        packed = tensors["packed"]
        codes = torch.stack([packed & 15, packed >> 4], -1).flatten(1).float() - 8
        scale = tensors["block_scale"].float() * tensors["tensor_scale"]
        return (codes.unflatten(1, (-1, 16)) * scale[..., None]).flatten(1).to(dtype)

    def weight_shape(self, shapes):
        rows, columns = shapes["weight"]
        return rows, columns * 2

    def layer_note(self, in_features):
        return {"format": "toy_packed_int4"}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(FORMATS, "toy4", PackedInt4())


def transformer(precision="toy4") -> FluxTransformer:
    return quantize(tiny_models.flux_transformer().bfloat16(), precision)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return set(first) == set(second) and all(
        first[k].dtype == second[k].dtype and torch.equal(first[k], second[k]) for k in first
    )


def test_a_layer_multiplies_trains_and_keeps_its_dtypes_in_moves():
    linear = torch.nn.Linear(64, 32)
    layer = QuantizedLinear.from_linear(linear, FORMATS["toy4"])
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert tiny_models.relative(layer(x), linear(x)) < 0.15
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.equal(float_weight(layer), layer.dequantize(torch.float32))
    layer.set_compute("native")
    assert "dequantize" in str(layer.kernel_choice(x.device, x.dtype))
    specs = FORMATS["toy4"].tensors(32, 64)
    for moved in (layer.half(), layer.to("meta")):
        assert {n: (tuple(t.shape), t.dtype) for n, t in moved.tensors().items()} == {
            n: (s.shape, s.dtype) for n, s in specs.items()
        }


@pytest.mark.parametrize("layers", [None, {LAYER: "toy4"}])
@pytest.mark.parametrize("as_stored", [False, True])
@pytest.mark.parametrize("budget", [None, 0])
def test_what_is_saved_is_loaded_to_the_bit(layers, as_stored, budget, tmp_path):
    precision = "toy4" if layers is None else PrecisionPlan("int8", layers)
    model = transformer(precision)
    path = save_module(model, tmp_path / "m.safetensors")
    asked = "as_stored" if as_stored else precision
    again = load_transformer(path, precision=asked, ram_budget=budget)
    assert quantized_names(again) == quantized_names(model) and same(model, again)
    if not as_stored:
        plain = save_module(transformer("bf16"), tmp_path / "p.safetensors")
        assert same(model, load_transformer(plain, precision=precision))
    assert "transformer" in describe_file(path)


class Unpacking(Kernel):
    """A kernel for packed codes, right or ``off`` by a factor."""

    name = "toy kernel"

    def __init__(self, off: float = 1.0) -> None:
        self.off = off

    def quantize_inputs(self, x):
        return x, torch.ones(len(x), 1)

    def multiply_codes(self, inputs, tensors, bias, dtype):
        out = self.off * self.reference(inputs.codes, tensors, 1)
        return out if bias is None else out + bias

    def reference(self, x, tensors, block):
        return x @ FORMATS["toy4"].dequantize(tensors, x.dtype).T


def test_its_kernels_are_tried_with_its_own_tensors(monkeypatch):
    layer = QuantizedLinear.from_linear(torch.nn.Linear(64, 32), FORMATS["toy4"])
    monkeypatch.setattr(layer.format, "kernels", (Unpacking(1.5), Unpacking()))
    layer.set_compute("native")
    for shape in ((64,), (3, 64), (2, 3, 64)):
        x = torch.randn(shape)
        expected = torch.nn.functional.linear(x, layer.dequantize(torch.float32), layer.bias)
        assert tiny_models.relative(layer(x), expected) < 1e-6 and layer(x).shape == expected.shape
    assert layer.kernel_choice(x.device, x.dtype).kernel is layer.format.kernels[1]


def test_it_is_loaded_at_another_precision(tmp_path):
    model, kwargs = transformer(), tiny_models.inputs()
    path = save_module(model, tmp_path / "m.safetensors")
    wide = load_transformer(path, precision="fp32")
    name = "single_blocks.0.linear1"
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantizedLinear)
    assert torch.equal(wide.get_parameter(f"{name}.weight"), layer.dequantize(torch.float32))
    with torch.no_grad():
        assert wide(**kwargs).isfinite().all()


def test_its_loss_is_measured_and_gptq_takes_the_nearest(caplog):
    model, kwargs = transformer("fp32"), tiny_models.inputs()
    with torch.no_grad():
        inputs = record_inputs(model, lambda: model(**kwargs))
        measured = layer_errors(model, inputs, ["int8", "toy4"])
    errors = measured[LAYER].errors
    assert errors["int8"] < errors["toy4"] < 0.2
    plan = choose_plan(measured, "toy4", 7)  # (7 - 4) / (16 - 4) of the weights may keep 16 bits
    total = sum(layer.weights for layer in measured.values())
    assert 0.1 * total < sum(measured[name].weights for name in plan.layers) <= total / 4
    with pytest.raises(ValueError, match=r"the budget is 3 bits a weight, toy4 takes 4 to 16"):
        choose_plan(measured, "toy4", 3)
    linear = torch.nn.Linear(64, 32)
    with caplog.at_level(logging.WARNING):
        second_moments = second_moments_of(torch.randn(8, 64))
        layer = QuantizedLinear.from_linear(linear, FORMATS["toy4"], second_moments)
    assert "toy4 cannot be rounded column by column" in caplog.text
    nearest = FORMATS["toy4"].quantize(linear.weight.detach())
    assert all(torch.equal(layer.tensors()[n], t) for n, t in nearest.items())


def test_it_streams_to_the_same_bits_with_a_lora_beside_it(tmp_path):
    model, kwargs = transformer(), tiny_models.inputs()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = model.get_submodule("single_blocks.0.linear2")
    assert isinstance(layer, QuantizedLinear)
    name = "transformer.single_transformer_blocks.0.proj_out"
    file = {
        f"{name}.lora_A.weight": torch.ones(2, layer.in_features),
        f"{name}.lora_B.weight": torch.ones(layer.out_features, 2),
    }
    lora = load_lora(tiny_models.save(file, tmp_path / "lora.safetensors"))
    with torch.no_grad():
        plain = model(**kwargs)
        with lora_applied(model, [(lora, 0.5)]):
            expected = model(**kwargs)
            assert not torch.equal(expected, plain)
            with placement_of(model, torch.device("cpu")).running((), 2):
                assert all(torch.equal(model(**kwargs), expected) for _ in range(2))
        with placement_of(model, torch.device("cpu")).running((), 2):
            assert torch.equal(model(**kwargs), plain)
    assert all(torch.equal(tensor, state[n]) for n, tensor in model.state_dict().items())
