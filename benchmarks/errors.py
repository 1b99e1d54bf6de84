"""The error of the transformer's output in every format, beside what other libraries give.

Weights are random with a standard deviation of 0.02, and one in ten thousand is 25 times as large;
the error is that of the whole output against float32, |v - v32| / |v32|. Every library quantizes
the same linear layers of the same weights in the same run; one that is not installed or does not
run on this device is listed with its reason.

    python -m benchmarks.errors          # torchao and comfy-kitchen count where installed
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from flux_core import FluxTransformer, load_transformer, quantize, set_compute
from flux_core.models.config import TransformerConfig
from flux_core.quant import FORMATS
from flux_core.quant.apply import linears
from flux_core.sampling.latents import image_ids, text_ids

HIDDEN, TOKENS, TEXT = 1024, 256, 64


def new_transformer(hidden: int, double: int, single: int) -> FluxTransformer:
    """Random weights with rare outliers, float32."""
    config = TransformerConfig(
        hidden_size=hidden, depth=double, depth_single_blocks=single, guidance_embed=True
    )
    model = FluxTransformer(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            p.copy_(0.02 * torch.randn(p.shape, generator=generator))
            p[torch.rand(p.shape, generator=generator) < 1e-4] *= 25
        elif name.endswith("bias"):
            p.zero_()
    return model


def make_inputs(device: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = int(TOKENS**0.5) * 2

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    return {
        "img": random(1, TOKENS, 64),
        "txt": random(1, TEXT, 4096),
        "y": random(1, 768),
        "timesteps": torch.tensor([0.6], device=device),
        "guidance": torch.tensor([3.5], device=device),
        "img_ids": image_ids(side, side).to(device),
        "txt_ids": text_ids(TEXT).to(device),
    }


def with_weights(model: FluxTransformer, change: Callable[[Tensor], Tensor]) -> FluxTransformer:
    """The model with every block's weights as another library gives them back."""
    for _, _, _, layer in linears(model):
        layer.weight.copy_(change(layer.weight).to(layer.weight.dtype))
    return model


class KitchenLinear(nn.Module):
    """comfy-kitchen's int8 product with rounded inputs."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        import comfy_kitchen as kitchen

        self.codes, self.scale = kitchen.quantize_int8_tensorwise(linear.weight)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        import comfy_kitchen as kitchen

        flat = x.reshape(-1, x.shape[-1])
        out = kitchen.int8_linear(flat, self.codes, self.scale, self.bias, x.dtype)
        return out.reshape(*x.shape[:-1], -1)


def kitchen_int8(model: FluxTransformer) -> FluxTransformer:
    for _, parent, name, layer in list(linears(model)):
        setattr(parent, name, KitchenLinear(layer))
    return model


def kitchen_float8(model: FluxTransformer) -> FluxTransformer:
    import comfy_kitchen as kitchen

    def change(weight: Tensor) -> Tensor:
        scale = weight.abs().amax() / 448
        codes = kitchen.quantize_per_tensor_fp8(weight, scale, torch.float8_e4m3fn)
        return kitchen.dequantize_per_tensor_fp8(codes, scale, torch.float32)

    return with_weights(model, change)


def torchao_with(name: str, **options) -> Callable[[FluxTransformer], FluxTransformer]:
    def apply(model: FluxTransformer) -> FluxTransformer:
        import torchao.quantization as ao

        if options:
            options["granularity"] = ao.PerRow()
        wanted = {id(layer) for _, _, _, layer in linears(model)}
        ao.quantize_(model, getattr(ao, name)(**options), lambda m, _: id(m) in wanted)
        return model

    return apply


def layerwise_casting(model: FluxTransformer) -> FluxTransformer:
    """diffusers' own hooks on our modules: stored in float8, cast back for each call."""
    from diffusers.hooks import apply_layerwise_casting

    for _, _, _, layer in list(linears(model)):
        apply_layerwise_casting(layer, torch.float8_e4m3fn, torch.float32)
    return model


OTHERS: dict[str, Callable[[FluxTransformer], FluxTransformer]] = {
    "DiffSynth-Studio, plain cast": lambda m: with_weights(m, lambda w: w.to(torch.float8_e4m3fn)),
    "diffusers, layerwise casting": layerwise_casting,
    "torchao, float8 weights": torchao_with("Float8WeightOnlyConfig"),
    "torchao, float8 a row, inputs too": torchao_with(
        "Float8DynamicActivationFloat8WeightConfig", granularity=None
    ),
    "torchao, int8 weights": torchao_with("Int8WeightOnlyConfig"),
    "torchao, int8, inputs too": torchao_with("Int8DynamicActivationInt8WeightConfig"),
    "comfy-kitchen, float8 a tensor": kitchen_float8,
    "comfy-kitchen, int8 a tensor, inputs too": kitchen_int8,
}


def ours(precision: str, compute: str) -> Callable[[FluxTransformer], FluxTransformer]:
    return lambda model: set_compute(quantize(model, precision), compute)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--double", type=int, default=4)
    parser.add_argument("--single", type=int, default=8)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file(new_transformer(HIDDEN, args.double, args.single).state_dict(), path)
        model = load_transformer(path, precision="fp32", device=args.device)
    inputs = make_inputs(args.device)
    exact = model(**inputs)

    def error(change: Callable[[FluxTransformer], FluxTransformer]) -> float:
        copied = copy.deepcopy(model)
        for _, _, _, layer in linears(copied):  # so that every layer is called, whoever changes it
            layer.register_forward_pre_hook(lambda *_: None)
        out = change(copied)(**inputs).float()
        return float((out - exact).norm() / exact.norm())

    cases = {
        f"FluxFit {precision}, {compute}": ours(precision, compute)
        for precision in FORMATS
        for compute in ("dequantize", "native")
    } | OTHERS
    plain = error(ours("fp8_e4m3fn", "dequantize"))
    print(f"| {'one byte a weight':<42} | error | of the plain cast's |\n| --- | --- | --- |")
    for name, change in cases.items():
        try:
            lost = error(change)
        except Exception as reason:  # a library may fail in any way; the table says how
            line = str(reason).strip().splitlines()[0] if str(reason).strip() else ""
            print(f"| {name:<42} | - | {type(reason).__name__}: {line[:70]} |", flush=True)
        else:
            print(f"| {name:<42} | {lost:.2%} | {lost / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()
