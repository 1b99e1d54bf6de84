"""Weights that do not fit into the host's memory stay on disk and compute all the same."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flux_core import FluxTransformer, load_transformer, save_module
from flux_core.errors import CheckpointError
from flux_core.models.config import TransformerConfig
from flux_core.offload.placement import placement_of
from flux_core.quant import FORMATS
from tests import tiny_models

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    model = tiny_models.flux_transformer().bfloat16()
    return tiny_models.save(
        model.state_dict(), tmp_path_factory.mktemp("native") / "model.safetensors"
    )


@pytest.mark.parametrize("precision", ["bf16", "as_stored", *sorted(FORMATS)])
def test_weights_on_disk_are_those_in_memory_and_stream_to_the_same_bits(precision, native):
    expected = load_transformer(native, precision=precision)
    model = load_transformer(native, precision=precision, ram_budget=0)
    for (name, a), b in zip(
        model.state_dict().items(), expected.state_dict().values(), strict=True
    ):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name
    kwargs = tiny_models.inputs()
    with torch.no_grad():
        wanted = expected(**kwargs)
        assert torch.equal(model(**kwargs), wanted)
        with placement_of(model, CPU).running(()):
            assert torch.equal(model(**kwargs), wanted)
    assert [p.name for p in native.parent.iterdir()] == ["model.safetensors"]


def test_a_quantized_file_is_mapped_and_nothing_is_written(native, tmp_path, monkeypatch):
    saved = tmp_path / "int8.safetensors"
    save_module(load_transformer(native, precision="int8"), saved)
    before = saved.read_bytes()

    def refuse(*_):
        raise AssertionError("a file was written")

    monkeypatch.setattr("flux_core.checkpoint.spill.Spill.file", refuse)
    monkeypatch.setattr("flux_core.checkpoint.spill.SMALL", 300_000)  # one tensor is turned round
    model = load_transformer(saved, precision="int8", ram_budget=0)
    with torch.no_grad():
        model.single_blocks[0].linear1.codes.zero_()  # the map is private
    assert saved.read_bytes() == before


def test_a_full_disk_is_said_and_leaves_nothing(native, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    monkeypatch.setattr("os.truncate", full)
    with pytest.raises(CheckpointError, match=r"do not fit into memory .* No space left"):
        load_transformer(native, precision="fp8_e4m3fn", ram_budget=0)
    assert [p.name for p in native.parent.iterdir()] == ["model.safetensors"]


MEASURE = """
import ctypes, sys, torch
from flux_core import load_transformer
torch.set_num_threads(1)
small, large, precision = sys.argv[1:]
load_transformer(small, precision=precision)
def own():
    ctypes.CDLL(None).malloc_trim(0)  # what was freed already does not count
    lines = open("/proc/self/status").read().splitlines()
    return int(next(l for l in lines if l.startswith("RssAnon")).split()[1]) * 1024
before = own()
model = load_transformer(large, precision=precision, ram_budget=0)
print(own() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("precision", ["bf16", "fp8_e4m3fn"])
def test_a_model_on_disk_takes_next_to_no_memory(precision, native, tmp_path):
    config = TransformerConfig(hidden_size=512, depth=6, depth_single_blocks=6)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in FluxTransformer(config).state_dict().items()}
    state = {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    path = tiny_models.save(state, tmp_path / "large.safetensors")
    command = [sys.executable, "-c", MEASURE, str(native), str(path), precision]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < path.stat().st_size / 4
