"""What only a card can show."""

from __future__ import annotations

import pytest
import torch

from flux_core import (
    FluxPipeline,
    OffloadPolicy,
    kernels_used,
    quantize,
    set_compute,
)
from flux_core.offload.placement import placement_of
from flux_core.quant import FORMATS, quantized_linears
from flux_core.quant.gptq import gptq_codes, loss, second_moments_of
from flux_core.quant.kernel_trial import kernel_error
from tests import tiny_models

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SETTINGS = {"width": 64, "height": 64, "steps": 4, "negative_prompt": "white", "cfg": 2.0}


@pytest.mark.parametrize("precision", ["bf16", "fp8_e4m3fn", "fp8_scaled", "int8"])
def test_policies_give_the_same_picture_to_the_bit(precision):
    drawn = [
        FluxPipeline.from_pocket(precision=precision, policy=OffloadPolicy(mode), device="cuda")(
            "a red circle on blue", **SETTINGS
        ).images
        for mode in ("none", "component", "stream", "auto")
    ]
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])


def test_streaming_reads_no_slot_too_early_or_too_late():
    """A hundred runs of a deep model with small blocks, where copies and kernels race."""
    model = tiny_models.flux_transformer().cuda()
    kwargs = {name: value.cuda() for name, value in tiny_models.inputs().items()}
    with torch.no_grad():
        expected = model(**kwargs)
        model.cpu()
        placement = placement_of(model, torch.device("cuda", 0))
        for pinned in (False, True):
            if pinned:
                placement.pin(range(len(placement.blocks)), 10**12)
            placement.set_resident(())
            with placement.running((), poison=True) as ring:
                for _ in range(100):
                    assert torch.equal(model(**kwargs), expected)
            assert ring is not None and ring.restarts == 0
            placement.evict()


def test_component_leaves_nothing_on_the_card():
    pipeline = FluxPipeline.from_pocket(policy=OffloadPolicy("component"), device="cuda")
    pipeline("a red circle on blue", **SETTINGS)
    held = torch.cuda.memory_allocated()
    pipeline("a green star on white", **SETTINGS)
    assert torch.cuda.memory_allocated() == held
    parts = (pipeline.transformer, pipeline.text_encoders, pipeline.vae)
    assert {p.device.type for part in parts for p in part.parameters()} == {"cpu"}


@pytest.mark.parametrize("precision", sorted(FORMATS))
def test_native_kernels_equal_their_references(precision):
    """Those that the card has; which ones it lacks, and why, is in the output (pytest -rs)."""
    format, device = FORMATS[precision], torch.device("cuda")
    generator = torch.Generator().manual_seed(0)
    tensors = format.quantize(0.02 * torch.randn(96, 256, generator=generator))
    tensors = {name: tensor.cuda() for name, tensor in tensors.items()}
    reasons = []
    for kernel in format.kernels:
        reason = kernel_error(kernel, format, device, torch.bfloat16)
        if reason:
            reasons.append(f"{kernel.name}: {reason}")
            continue
        for tokens in (1, 17, 40, 333):
            x = torch.randn(tokens, 256, generator=generator).cuda().bfloat16()
            result = kernel.multiply(x, tensors, format.block(256)).float()
            expected = kernel.reference(x, tensors, format.block(256))
            assert tiny_models.relative(result, expected) < 0.02
    if len(reasons) == len(format.kernels):
        pytest.skip("; ".join(reasons))


@pytest.mark.parametrize("precision", sorted(FORMATS))
def test_native_compiled_equals_dequantized_within_its_bound(precision):
    model = tiny_models.flux_transformer().cuda()
    kwargs = {name: value.cuda() for name, value in tiny_models.inputs().items()}
    with torch.no_grad():
        exact = model(**kwargs)
        quantize(model.bfloat16(), precision)
        errors = {}
        for compute in ("dequantize", "native"):
            set_compute(model, compute)
            errors[compute] = tiny_models.relative(model(**kwargs), exact)
        print(kernels_used(model))
        assert errors["native"] < 1.5 * errors["dequantize"] + 0.005  # activations in bfloat16
        eager = model(**kwargs)
        compiled = torch.compile(model)
        assert tiny_models.relative(compiled(**kwargs), eager) < 0.02
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(**kwargs | {"timesteps": kwargs["timesteps"] * 0.5})
            compiled(**kwargs | {"txt": kwargs["txt"] * 0.5})


def test_auto_is_native_where_the_card_has_matrix_units():
    model = quantize(tiny_models.flux_transformer().bfloat16(), "int8").cuda()
    with torch.no_grad():
        model(**{name: value.cuda() for name, value in tiny_models.inputs().items()})
    if torch.cuda.get_device_capability() >= (7, 5):
        kernel_choices = [
            way for layer in quantized_linears(model) for way in layer.kernel_choices.values()
        ]
        assert kernel_choices and all(way.kernel is not None for way in kernel_choices)


@pytest.mark.parametrize("name", FORMATS)
def test_calibrated_codes_lose_as_little_when_the_card_finds_them(name):
    torch.manual_seed(0)
    format, weight = FORMATS[name], 0.1 * torch.randn(64, 512)
    x = torch.randn(512, 8) @ torch.randn(8, 512) + 0.1 * torch.randn(512, 512)
    second_moments = second_moments_of(x) / len(x)
    turned = format.rotate(format.rotate(second_moments).transpose(1, 2))
    scaled, _ = format.prepare(weight)
    lost = [
        float(loss(scaled, gptq_codes(format, weight, second_moments.to(where))[0], turned).sum())
        for where in ("cpu", "cuda")
    ]
    assert lost[1] < 1.05 * lost[0]
