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


def write(path, tensors, kind, architecture="flux", **more):
    """A GGUF file whose matrices are of one kind and the rest float32, as converters write them."""
    writer = gguf.GGUFWriter(str(path), architecture)
    for name, value in more.items():
        name = name.replace("__", ".")
        if isinstance(value, list):
            writer.add_array(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_uint16(name, value)
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
    return tiny_models.flux_transformer(tiny_models.ONE_OF_EACH)


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


def test_lists_in_a_header_are_stepped_over(tmp_path):
    model = transformer()
    lists = {
        "tokenizer__tokens": [f"tok{i}" for i in range(1000)] + ["", "ä"],
        "tokenizer__scores": [0.5] * 1000,
        "tokenizer__types": [1] * 1000,
        "tokenizer__flags": [True, False, True],
    }
    path = write(tmp_path / "m.gguf", model.state_dict(), "F16", **lists)
    plain = write(tmp_path / "p.gguf", model.state_dict(), "F16")
    a, b = (open_source(p) for p in (path, plain))
    assert a.entries.keys() == b.entries.keys()
    assert all(torch.equal(a.read(name), b.read(name)) for name in a.entries)


@pytest.mark.parametrize("kind", [4, 8, 9, 10, 99])  # numbers, texts, lists, wide numbers, nothing
@pytest.mark.parametrize("count", [2**20, 2**40, 2**63])
def test_lists_without_an_end_are_refused(kind, count, tmp_path):
    path = write(tmp_path / "m.gguf", {"a": torch.zeros(2)}, "F16", tokenizer__x=[1, 2, 3])
    raw = path.read_bytes()
    at = raw.index(b"tokenizer.x") + len(b"tokenizer.x") + 4
    head = kind.to_bytes(4, "little") + count.to_bytes(8, "little")
    path.write_bytes(raw[:at] + head + raw[at + 12 :])
    with pytest.raises(CheckpointError, match="m.gguf: cannot be read as a GGUF file"):
        open_source(path)


def test_one_of_several_parts_is_refused(tmp_path):
    path = write(tmp_path / "m.gguf", transformer().state_dict(), "F16", split__count=2)
    with pytest.raises(CheckpointError, match="is one of 2 parts, expected one file"):
        load_transformer(path)


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
    other = write(tmp_path / "gemma.gguf", {"a.weight": torch.zeros(32, 32)}, "Q8_0", "gemma")
    with pytest.raises(CheckpointError, match="architecture 'gemma', expected one of flux"):
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
