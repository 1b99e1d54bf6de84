"""What a picture says of how it was made: hashes of files and pixels, and the receipt itself."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
import torch

from flux_core import load_transformer, load_vae
from flux_core.errors import FileError
from flux_core.pocket import pocket_file
from flux_core.receipts import (
    Receipt,
    content_hash,
    hashes,
    pixels_hash,
    png_bytes,
    read_png_texts,
    saved_pixels,
)
from flux_core.receipts.receipt import machine
from flux_core.record import ReadFrom, note, read_from, recording, stamp_of


@pytest.fixture
def read(monkeypatch) -> list:
    """The files that are read whole to be hashed."""
    paths = []
    digest_of = hashes.digest_of
    monkeypatch.setattr(hashes, "digest_of", lambda path: (paths.append(path), digest_of(path))[1])
    return paths


def test_a_file_is_read_once_for_its_hash(tmp_path, read):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    assert content_hash(file) == hashlib.sha256(b"weights").hexdigest()
    assert content_hash(file) == content_hash(str(file))
    assert len(read) == 1


def test_a_file_that_was_replaced_is_read_again(tmp_path, read):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    before = content_hash(file)
    file.write_bytes(b"WEIGHTS")  # of the same size
    os.utime(file, ns=(1, 1))
    assert content_hash(file) != before and len(read) == 2


def test_a_file_is_read_once_where_nothing_can_be_kept(tmp_path, read, monkeypatch):
    monkeypatch.setattr(hashes, "_known", {})
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    monkeypatch.setenv("FLUXFIT_CACHE", str(file / "cache"))  # which is no folder
    assert content_hash(file) == content_hash(file) and len(read) == 1
    file.write_bytes(b"other weights")
    assert content_hash(file) == hashlib.sha256(b"other weights").hexdigest()


def test_it_names_what_drew_where_there_is_a_card_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device}")
    machine.cache_clear()
    encoded = {"kind": "ran", "part": "t5", "device": "cpu"}
    drawn = {"kind": "ran", "part": "transformer", "device": "cpu"}
    assert Receipt.of_notes([encoded, drawn]).device.startswith("cpu, ")
    assert Receipt.of_notes([encoded, drawn | {"device": "cuda:1"}]).device == "card cuda:1"
    assert Receipt.of_notes([]).device == "card None"
    machine.cache_clear()


@pytest.mark.parametrize("did", [{"did": [3]}, {"files": {"a": "b"}}])
def test_receipts_of_other_things_are_refused(did):
    with pytest.raises(ValueError, match="expected an object"):
        Receipt.parse(json.dumps({"version": 1, **did}))


@pytest.mark.parametrize("damage", [b"", b"[1, 2", b'["a", 1, 2]', b"\xff\xfe"])
def test_a_damaged_note_of_a_hash_is_written_anew(tmp_path, damage):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    expected = content_hash(file)
    for kept in hashes.cache_folder().rglob("*.json"):
        kept.write_bytes(damage)
    assert content_hash(file) == expected


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setenv("FLUXFIT_CACHE", str(blocked / "below"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    assert content_hash(file) == hashlib.sha256(b"weights").hexdigest()


def test_shards_and_folders_are_one_model(tmp_path):
    for name in ("a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    index = tmp_path / "a.safetensors.index.json"
    shards = {"x": "a-00001-of-00002.safetensors", "y": "a-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}))
    before = content_hash(index), content_hash(tmp_path)
    (tmp_path / "a-00002-of-00002.safetensors").write_bytes(b"other")
    assert content_hash(index) != before[0] and content_hash(tmp_path) != before[1]


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}'])
def test_a_broken_index_and_a_missing_file_are_named(tmp_path, text):
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(text)
    for path in (index, tmp_path / "none.safetensors"):
        with pytest.raises(FileError, match=path.name):
            content_hash(path)


def test_pixels_are_known_by_their_values_and_size():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    assert pixels_hash(picture) == pixels_hash(picture.copy())
    assert pixels_hash(picture) != pixels_hash(picture.reshape(4, 2, 3))
    assert pixels_hash(picture) != pixels_hash(picture + 1)


def test_modules_know_their_file_and_precision():
    path = pocket_file("diffusion_models")
    assert read_from(load_transformer(path, precision="int8")) == ReadFrom(
        path, "int8", ((path.stat().st_size, path.stat().st_mtime_ns),)
    )
    vae = read_from(load_vae(pocket_file("vae", "_vae"), dtype=torch.float32))
    assert vae is not None and vae.precision == "fp32"
    assert read_from(torch.nn.Linear(1, 1)) is None


def test_notes_reach_those_who_record_alone():
    note("draw", seed=1)
    with recording() as outer:
        note("draw", seed=2, cfg=None)
        with recording() as inner:
            note("draw", seed=3)
    note("draw", seed=4)
    assert outer == [{"kind": "draw", "seed": 2}, {"kind": "draw", "seed": 3}]
    assert inner == [{"kind": "draw", "seed": 3}]


def test_a_receipt_comes_back_from_its_picture(tmp_path):
    file = tmp_path / "folder" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    receipt = Receipt.of_notes([{"kind": "draw", "seed": 1, "model": ReadFrom(file, "int8")}])
    assert str(tmp_path) not in str(receipt)  # of a file its name alone
    pixels = saved_pixels(torch.rand(4, 6, 3))
    receipt = receipt.of_picture(pixels_hash(pixels), "9", 0, 2)
    path = tmp_path / "picture.png"
    path.write_bytes(png_bytes(pixels, {"fluxfit": str(receipt)}))
    shown, texts = read_png_texts(path)
    again = Receipt.parse(texts["fluxfit"])
    assert again.to_json() == receipt.to_json() and again.pixels == pixels_hash(shown)
    assert again.files["model.safetensors"]["sha256"] == content_hash(file)
    assert again.did[0]["model"] == {"file": "model.safetensors", "precision": "int8"}


def test_files_of_one_name_are_told_apart_and_changed_ones_have_no_hash(tmp_path):
    notes = []
    for folder in ("a", "b"):
        file = tmp_path / folder / "model.safetensors"
        file.parent.mkdir()
        file.write_bytes(folder.encode())
        notes.append({"kind": "ran", "models": [ReadFrom(file)]})
    file = tmp_path / "changed.safetensors"
    file.write_bytes(b"before")
    notes.append({"kind": "ran", "models": [ReadFrom(file, None, ((1, 1),))]})
    receipt = Receipt.of_notes(notes)
    names = [entry["models"][0]["file"] for entry in receipt.did]
    assert names == ["model.safetensors", "model.safetensors (2)", "changed.safetensors"]
    assert receipt.files["changed.safetensors"] == {}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 99}', '{"version": 1, "did": 3}', '{"version": 1, "pixels": []}'],
)
def test_what_is_no_receipt_is_refused(text):
    with pytest.raises(ValueError):
        Receipt.parse(text)


def test_a_shard_that_was_replaced_is_noticed(tmp_path):
    shards = [tmp_path / f"a-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for shard in shards:
        shard.write_bytes(b"weights")
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": shards[0].name, "y": shards[1].name}}))
    read = ReadFrom(index, stamp=stamp_of(index))
    assert read.unchanged
    shards[1].write_bytes(b"WEIGHTS!")
    assert not read.unchanged
    shards[1].unlink()
    assert not read.unchanged
