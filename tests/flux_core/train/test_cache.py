"""Encodings that are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flux_core.train.cache import TensorStore, fingerprint
from tests.training_runs import data_config, new_trainer, read_folders, train_config, write_pictures


def test_cached_equals_uncached(tmp_path):
    losses = {}
    for name, cache in (("memory", "none"), ("files", ""), ("again", str(tmp_path / "c"))):
        config = train_config(tmp_path, name=name, cache=cache, steps=3)
        losses[name] = new_trainer(config).run().history.losses
    stages = []
    again = train_config(tmp_path, name="reused", cache=str(tmp_path / "c"), steps=3)
    run = new_trainer(again, on_event=lambda event: stages.append(event.what))
    losses["reused"] = run.run().history.losses
    assert "encoding pictures" not in stages and "encoding captions" not in stages
    assert all(of_run == losses["memory"] for of_run in losses.values())


def test_a_broken_file_is_made_anew(tmp_path):
    config = train_config(tmp_path, steps=1)
    expected = new_trainer(config).run().history.losses
    files = sorted((tmp_path / "cache").rglob("*.safetensors"))
    for file in files:
        file.write_bytes(file.read_bytes()[:-9])
    store = TensorStore(tmp_path / "cache")
    assert store.get(files[0].stem) is None and not files[0].is_file()
    for file in files:
        file.unlink(missing_ok=True)
    losses = new_trainer(replace(config, name="second")).run().history.losses
    assert losses == expected


def test_another_model_or_picture_has_another_key(tmp_path):
    layer = torch.nn.Linear(2000, 3)
    before = fingerprint(layer)
    assert fingerprint(layer) == before
    with torch.no_grad():
        layer.weight[0, 0] += 1e-3
    assert fingerprint(layer) != before
    items = [i for c in "ab" for i in read_folders(data_config(write_pictures(tmp_path / c)))[0]]
    assert items[0].content == items[5].content != items[1].content


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flux_core.train.cache.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        new_trainer(train_config(tmp_path)).run()
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
