"""Filling a module: what is missing, what is too much, what it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flux_core import (
    CheckpointError,
    FluxTransformer,
    load_transformer,
    quantize,
)
from flux_core.models.config import TransformerConfig
from flux_core.quant import FORMATS, QuantizedLinear
from tests import tiny_models

ROOT = Path(__file__).resolve().parents[3]


class TestBadFiles:
    def test_missing_tensors_are_named(self, native, tmp_path):
        state = dict(native[1])
        del state["single_blocks.2.linear2.weight"]
        with pytest.raises(CheckpointError, match=r"lacks 1 of \d+ tensors: single_blocks\.2"):
            load_transformer(tiny_models.save(state, tmp_path / "m.safetensors"))

    def test_a_tensor_of_another_shape_is_named(self, native, tmp_path):
        state = native[1] | {"single_blocks.2.linear2.weight": torch.zeros(3, 3)}
        with pytest.raises(CheckpointError, match=r"linear2\.weight.*\(3, 3\), expected \("):
            load_transformer(tiny_models.save(state, tmp_path / "m.safetensors"))

    def test_unused_tensors_are_reported(self, native, tmp_path, caplog):
        path = tiny_models.save(
            native[1] | {"something.else": torch.zeros(2)}, tmp_path / "u.safetensors"
        )
        load_transformer(path)
        assert "1 tensors" in caplog.text and "something.else" in caplog.text


MEASURE = """
import resource, sys, torch
from flux_core import load_transformer
from flux_core.quant.apply import module_bytes
torch.set_num_threads(1)
small, large, precision = sys.argv[1:]
load_transformer(small, precision=precision)  # what the first load of all takes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_transformer(large, precision=precision)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) * 1024, module_bytes(model))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("precision", ["fp8_scaled", "bf16"])
def test_a_load_holds_the_result_and_one_tensor_more(precision, native, tmp_path):
    """Peak memory of a process that opens a float32 file of 300 MB."""
    config = TransformerConfig(hidden_size=512, depth=6, depth_single_blocks=6)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in FluxTransformer(config).state_dict().items()}
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    path = tiny_models.save(state, tmp_path / "large.safetensors")
    assert path.stat().st_size > 300e6
    command = [sys.executable, "-c", MEASURE, str(native[0]), str(path), precision]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    grown, result = map(int, done.stdout.split())
    largest = max(v.numel() * 4 for v in state.values())
    # the largest tensor is there as it was read and, while it is encoded, in a few copies
    assert grown < result + 6 * largest, (grown / 2**20, result / 2**20, largest / 2**20)


FLOAT8 = sorted(FORMATS)


def test_loading_quantizes_as_quantize_does(tmp_path):
    theirs = tiny_models.diffusers_transformer()
    path = tiny_models.save(theirs.state_dict(), tmp_path / "m.safetensors")
    kwargs = tiny_models.inputs()
    for precision in FLOAT8:
        loaded = load_transformer(path, precision=precision)
        after = quantize(load_transformer(path, precision="fp32"), precision)
        pairs = zip(loaded.modules(), after.modules(), strict=True)
        for a, b in ((a, b) for a, b in pairs if isinstance(a, QuantizedLinear)):
            assert torch.equal(a.codes, b.codes)
        assert loaded(**kwargs).isfinite().all()
