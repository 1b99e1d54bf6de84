"""GGUF files as the transformer and T5."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
import torch

from flux_core import CheckpointError, FluxTransformer, load_t5, load_transformer
from flux_core.checkpoint.gguf import T5_BLOCK, T5_NAMES
from flux_core.checkpoint.inspect import describe_file
from flux_core.checkpoint.reader import open_source
from tests import tiny_models
from tests.flux_core.models.test_text_encoders import t5_model

gguf = pytest.importorskip("gguf")
COMMON = ("F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
WEIGHT = "double_blocks.0.img_mlp.0.weight"


def write(path, tensors, kind, architecture="flux"):
    """A GGUF file whose matrices are of one kind and the rest float32, as converters write them."""
    writer = gguf.GGUFWriter(str(path), architecture)
    kind = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        if values.ndim == 2 and values.shape[1] % block == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer()


@pytest.mark.parametrize("kind", COMMON)
def test_transformer_of_every_common_kind(kind, tmp_path):
    model, kwargs = transformer(), tiny_models.inputs()
    path = write(tmp_path / "m.gguf", model.state_dict(), kind)
    loaded = load_transformer(path, precision="fp32")
    with torch.no_grad():
        error = tiny_models.relative(loaded(**kwargs), model(**kwargs))
    assert error < {"F16": 1e-3, "BF16": 5e-3, "Q8_0": 0.02}.get(kind, 0.25)


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_are_read_as_the_package_reads_them(kind, tmp_path):
    """The package cannot write them, so blocks of chosen scales and random codes stand for them."""
    model = transformer()
    type_ = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[type_]
    rows, columns = 32, block
    raw = np.random.default_rng(0).integers(0, 256, (rows, size * columns // block), dtype=np.uint8)
    raw[:, -4:] = np.array([1.0, 0.5], np.float16).view(np.uint8)  # where Q6_K keeps its scale
    raw[:, :4] = np.array([0.01, 0.01], np.float16).view(np.uint8)
    expected = torch.from_numpy(gguf.quants.dequantize(raw, type_).copy())
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "flux")
    writer.add_tensor("extra.weight", raw, raw_dtype=type_)
    for name, tensor in model.state_dict().items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read_tensor = open_source(tmp_path / "m.gguf").read("extra.weight")
    assert read_tensor.shape == expected.shape
    assert torch.equal(read_tensor.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("precision", ["bf16", "fp8_scaled", "int8"])
def test_any_precision_is_made_of_it(precision, tmp_path):
    model, kwargs = transformer(), tiny_models.inputs()
    path = write(tmp_path / "m.gguf", model.state_dict(), "Q8_0")
    with torch.no_grad():
        read_tensor = load_transformer(path, precision=precision)(**kwargs)
        assert tiny_models.relative(read_tensor.float(), model(**kwargs)) < 0.08


def test_t5_under_the_names_of_llama_cpp(tmp_path):
    theirs = t5_model()
    back = {ours: name for name, ours in T5_NAMES.items()}
    inner = {ours: name for name, ours in T5_BLOCK.items()}
    tensors = {}
    for name, tensor in theirs.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if stem == "encoder.embed_tokens":
            continue
        if stem.startswith("encoder.block."):
            number, rest = stem.removeprefix("encoder.block.").split(".", 1)
            stem = f"enc.blk.{number}.{inner[rest]}"
        tensors[f"{back.get(stem, stem)}.{kind}"] = tensor
    path = write(tmp_path / "t5.gguf", tensors, "F16", "t5encoder")
    ids = torch.randint(0, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        read_tensor = load_t5(path, precision="fp32")(ids)
        assert tiny_models.relative(read_tensor, theirs(input_ids=ids).last_hidden_state) < 2e-3


def test_bad_files_are_refused_by_name(tmp_path):
    path = write(tmp_path / "m.gguf", transformer().state_dict(), "Q8_0")
    raw = path.read_bytes()
    for name, content, message in (
        ("cut.gguf", raw[: len(raw) // 2], "truncated"),
        ("head.gguf", raw[:20], "truncated or no GGUF"),
        ("empty.gguf", b"GGUF", "truncated or no GGUF"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as raised:
            load_transformer(tmp_path / name)
        assert name in str(raised.value)
    other = write(tmp_path / "llama.gguf", {"a.weight": torch.zeros(32, 32)}, "Q8_0", "llama")
    with pytest.raises(CheckpointError, match="architecture 'llama', expected one of flux"):
        load_transformer(other)


def test_inspect_names_the_kinds(tmp_path):
    path = write(tmp_path / "m.gguf", transformer().state_dict(), "Q8_0")
    described = describe_file(path)
    assert "transformer (native layout)" in described and "Q8_0" in described


def test_without_the_package_the_way_out_is_said(tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf", transformer().state_dict(), "Q8_0")
    real = builtins.__import__

    def without(name, *rest, **more):
        level = rest[3] if len(rest) > 3 else more.get("level", 0)
        if name == "gguf" and level == 0:
            raise ImportError("No module named 'gguf'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CheckpointError, match="pip install gguf"):
        load_transformer(path)
