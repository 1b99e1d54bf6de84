"""Fused passes equal torch's operations. Triton's interpreter runs their kernels on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flux_core import quantize, set_compute
from flux_core.models.layers import Modulation, QKNorm, apply_rotary, rotary_table, split_heads
from flux_core.quant import fused
from flux_core.quant.kernels import to_float8, to_int8
from tests import tiny_models

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the card runs them itself")

DTYPES = [torch.float32, torch.bfloat16]
#: The interpreter cuts float8 off where a card rounds it.
LOST = {fused.PLAIN: 0.006, fused.INT8: 0.012, fused.FLOAT8: 0.09}


@pytest.fixture
def interpreted():
    """The kernels' module (``conftest`` has it interpreted)."""
    return fused.kernels()


@pytest.fixture
def everywhere(interpreted, monkeypatch):
    """Fused passes wherever a card would have them."""

    def serves(x, width=0):
        return x.dtype in fused.DTYPES and not x.requires_grad

    monkeypatch.setattr(fused, "serves", serves)


def values(rounded: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    codes, scales = rounded
    return codes.float() * scales if len(scales) else codes.float()


@pytest.mark.parametrize("rounding", LOST)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 96, 257])
def test_normalised_and_modulated_rows(interpreted, width, dtype, rounding):
    wide = torch.randn(2, 5, width + 3, dtype=dtype)
    for x in (wide[..., :width], wide[..., :width].mT.contiguous().mT):
        for tokens, pictures in ((1, 2), (5, 2), (1, 1)):
            shift, scale = torch.randn(2, pictures, tokens, width, dtype=dtype)
            expected = Modulation(shift, scale, scale).modulate(x).flatten(0, 1)
            got = values(interpreted.launch_norm_modulate(x, shift, scale, rounding))
            assert tiny_models.relative(got, expected) < LOST[rounding]


@pytest.mark.parametrize("rounding", LOST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_beside_the_gelu_of_others(interpreted, dtype, rounding):
    wide = 10 * torch.randn(7, 300, dtype=dtype)
    for a, h in ((wide[:, :32], wide[:, 32:]), (None, wide[:, :200]), (wide[:, 5:64], None)):
        gelu = None if h is None else F.gelu(h, approximate="tanh")
        expected = torch.cat([part for part in (a, gelu) if part is not None], dim=-1)
        got = values(interpreted.launch_join_gelu(a, h, rounding))
        assert tiny_models.relative(got, expected) < LOST[rounding]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounded_rows_have_the_codes_and_scales_that_torch_finds(interpreted, dtype):
    x = torch.randn(9, 80, dtype=dtype) * torch.logspace(-3, 3, 9)[:, None].to(dtype)
    x[3] = 0
    codes, scales = interpreted.launch_join_gelu(x, None, fused.INT8)
    expected, expected_scales = to_int8(x)
    assert torch.equal(codes, expected) and torch.equal(scales, expected_scales)
    codes, scales = interpreted.launch_join_gelu(x, None, fused.FLOAT8)
    expected, expected_scales = to_float8(x)
    assert torch.equal(scales, expected_scales)
    assert tiny_models.relative(codes.float(), expected.float()) < LOST[fused.FLOAT8]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(5,), (3, 5)])
@pytest.mark.parametrize("pictures", [1, 2])
def test_queries_and_keys(interpreted, pictures, lengths, dtype):
    heads, d, tokens = 3, 16, sum(lengths)
    ids = torch.randint(0, 50, (pictures, tokens, 3))
    rotary = rotary_table(ids if pictures > 1 else ids[0], (4, 6, 6), 10_000.0)
    streams, triples, scales = [], [], []
    for length in lengths:
        norm = QKNorm(d).requires_grad_(False)
        for part in (norm.query_norm, norm.key_norm):
            part.scale.normal_()
            scales.append(part.scale)
        # a slice of a wider projection, as single blocks have it
        qkv = torch.randn(pictures, length, 3 * heads * d + 8, dtype=dtype)[..., :-8]
        q, k, v = split_heads(qkv, heads)
        streams.append(qkv)
        triples.append((*norm(q, k), v))
    q, k, v = (torch.cat(three, dim=1) for three in zip(*triples, strict=True))
    got = fused.norm_rotary(streams, scales, rotary, heads)
    expected = apply_rotary(q, rotary), apply_rotary(k, rotary), v
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == dtype
        assert tiny_models.relative(ours.float(), theirs.float()) < 0.01


@pytest.mark.parametrize("tokens", [1, 40, 150])
@pytest.mark.parametrize("sizes", [(96, 64), (130, 192)])
def test_int8_products(interpreted, sizes, tokens):
    out, inputs = sizes
    a = torch.randint(-127, 128, (tokens, inputs), dtype=torch.int8)
    codes = torch.randint(-127, 128, (out, inputs), dtype=torch.int8)
    by_token, by_row, bias = torch.rand(tokens, 1), torch.rand(1, out), 1e4 * torch.randn(out)
    exact = (a.int() @ codes.int().T).float() * by_token * by_row
    for added in (None, bias):
        got = interpreted.launch_int8_product(a, codes, by_token, by_row, added, torch.float32)
        assert tiny_models.relative(got, exact if added is None else exact + added) < 1e-6


@pytest.mark.parametrize("precision", ["bf16", "fp8_scaled", "int8"])
def test_a_transformer_of_fused_passes(everywhere, monkeypatch, precision):
    model = tiny_models.flux_transformer(tiny_models.ONE_OF_EACH)
    with torch.no_grad():
        exact = model(**tiny_models.inputs())
    model.bfloat16()
    if precision != "bf16":
        set_compute(quantize(model, precision), "native")
    inputs = tiny_models.inputs()
    called = []
    for name in ("norm_modulate", "join_gelu", "norm_rotary"):
        real = getattr(fused, name)
        monkeypatch.setattr(
            fused, name, lambda *a, name=name, real=real: called.append(name) or real(*a)
        )
    with torch.no_grad():
        got = model(**inputs)
        assert set(called) == {"norm_modulate", "join_gelu", "norm_rotary"}
        monkeypatch.setattr(fused, "serves", lambda x, width=0: False)
        called.clear()
        by_torch = model(**inputs)
        assert not called
    ours, torchs = (tiny_models.relative(out.float(), exact) for out in (got, by_torch))
    assert ours < torchs * (3 if precision == "fp8_scaled" else 1.2)


@pytest.mark.parametrize("precision", ["bf16", "fp8_scaled", "int8"])
def test_blocks_of_fused_passes_are_traced_whole(everywhere, precision):
    model = tiny_models.flux_transformer(tiny_models.ONE_OF_EACH).bfloat16()
    if precision != "bf16":
        set_compute(quantize(model, precision), "native")
    inputs = tiny_models.inputs(batch=1)
    with torch.no_grad():
        expected = model(**inputs)
        for block in model.offload_blocks():
            traced = torch.compile(type(block).forward, backend="aot_eager", fullgraph=True)
            block.compiled = traced  # type: ignore[assignment]
        assert torch.equal(model(**inputs), expected)


def test_gradients_and_cpus_have_torchs_operations():
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    assert not fused.serves(x)
    assert not fused.ready(torch.device("cpu"))
    with fused.by_torch():
        assert not fused.serves(x)
