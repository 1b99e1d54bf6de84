"""Files that are broken or lie."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch

from flux_core import (
    CheckpointError,
    load_transformer,
    load_vae,
)
from tests import tiny_models


class TestBadFiles:
    def test_truncated(self, native, tmp_path):
        path = tmp_path / "cut.safetensors"
        path.write_bytes(native[0].read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors: is truncated.* ends at byte"):
            load_transformer(path)

    @pytest.mark.parametrize("length", [10**6, 2**62])
    def test_header_larger_than_the_file(self, length, tmp_path):
        path = tmp_path / "h.safetensors"
        path.write_bytes(struct.pack("<Q", length) + b"{}")
        with pytest.raises(CheckpointError, match=rf"claims {length} bytes, but the file holds 2"):
            load_transformer(path)

    def test_header_that_is_no_json(self, tmp_path):
        path = tmp_path / "j.safetensors"
        path.write_bytes(struct.pack("<Q", 4) + b"{{{{")
        with pytest.raises(CheckpointError, match="for its header"):
            load_transformer(path)

    def test_offsets_that_lie(self, tmp_path):
        header = {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}
        raw = json.dumps(header).encode()
        path = tmp_path / "o.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
        with pytest.raises(CheckpointError, match="takes 16 bytes, the header gives it 8"):
            load_transformer(path)

    @pytest.mark.parametrize("data", [b"", b"abc"])
    def test_too_short(self, data, tmp_path):
        path = tmp_path / "s.safetensors"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=f"is {len(data)} bytes, too short"):
            load_transformer(path)

    def test_pickles_are_not_opened(self, tmp_path):
        for name, write in (
            ("torch.safetensors", lambda p: torch.save({"a": torch.ones(1)}, p)),
            ("plain.safetensors", lambda p: p.write_bytes(pickle.dumps({"a": 1}))),
        ):
            write(tmp_path / name)
            with pytest.raises(CheckpointError, match="is a pickle"):
                load_transformer(tmp_path / name)

    def test_missing_file(self, tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            load_vae(tmp_path / "none.safetensors")

    def test_missing_shard(self, tmp_path):
        folder = tiny_models.save_shards(
            tiny_models.diffusers_transformer().state_dict(), tmp_path / "f"
        )
        (folder / "model-00002-of-00003.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"1 of 3 shards.*model-00002-of-00003"):
            load_transformer(folder)

    def test_one_shard_stands_for_all(self, tmp_path):
        folder = tiny_models.save_shards(
            tiny_models.diffusers_transformer().state_dict(), tmp_path / "f"
        )
        one = load_transformer(folder / "model-00002-of-00003.safetensors")
        whole = load_transformer(folder)
        pairs = zip(one.parameters(), whole.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_an_index_cannot_point_outside_its_folder(self, native, tmp_path):
        index = {"weight_map": {"img_in.weight": f"../{native[0].name}"}}
        path = tmp_path / "m.index.json"
        path.write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="missing beside it"):
            load_transformer(path)
