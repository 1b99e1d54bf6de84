"""Models in several files, and folders of them, as people have them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from flux_core import CheckpointError, load_transformer
from tests import tiny_models


class TestShards:
    """However they are listed, and whatever lies beside them."""

    def write(self, folder, name: str = "diffusion_pytorch_model", count: int = 3) -> dict:
        tensors = tiny_models.flux_transformer().state_dict()
        names = list(tensors)
        self.where = {}
        for n in range(count):
            file = f"{name}-{n + 1:05d}-of-{count:05d}.safetensors"
            save_file({k: tensors[k].clone() for k in names[n::count]}, folder / file)
            self.where |= dict.fromkeys(names[n::count], file)
        return tensors

    def check(self, path, tensors) -> None:
        loaded = load_transformer(path, precision="fp32").state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in tensors.items())

    @pytest.mark.parametrize(
        "other", ["x.bin.index.json", "flax_model.msgpack.index.json", "model.index.json"]
    )
    def test_an_index_of_another_framework_is_none(self, other, tmp_path):
        tensors = self.write(tmp_path)
        (tmp_path / other).write_text('{"weight_map": {"a": "x.bin"}}')
        self.check(tmp_path, tensors)
        index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": self.where}))
        self.check(tmp_path, tensors)

    def test_an_index_of_a_variant_as_diffusers_names_it(self, tmp_path):
        tensors = self.write(tmp_path, "diffusion_pytorch_model.fp16")
        index = tmp_path / "diffusion_pytorch_model.safetensors.index.fp16.json"
        index.write_text(json.dumps({"weight_map": self.where}))
        self.check(tmp_path, tensors)
        self.check(index, tensors)
        self.check(tmp_path / next(iter(self.where.values())), tensors)

    def test_an_index_that_was_not_fetched_is_not_needed(self, tmp_path):
        tensors = self.write(tmp_path)
        files = sorted(set(self.where.values()))
        for path in (tmp_path, tmp_path / files[1]):
            self.check(path, tensors)
        first = next(name for name, file in self.where.items() if file == files[0])
        extra = {first: torch.zeros(2)}
        save_file(extra, tmp_path / files[2])
        (tmp_path / files[2]).rename(tmp_path / "kept")
        self.write(tmp_path)
        (tmp_path / "kept").replace(tmp_path / files[2])
        with pytest.raises(CheckpointError, match="hold some tensors twice"):
            load_transformer(tmp_path)
        (tmp_path / files[2]).unlink()
        for path in (tmp_path, tmp_path / files[1]):
            with pytest.raises(CheckpointError, match=f"1 of 3 shards are missing.*{files[2]}"):
                load_transformer(path)

    def test_a_folder_of_one_sft_file_or_of_a_whole_pipeline(self, tmp_path):
        tensors = tiny_models.flux_transformer().state_dict()
        tiny_models.save(tensors, tmp_path / "flux1-dev.sft")
        self.check(tmp_path, tensors)
        (tmp_path / "flux1-dev.sft").unlink()
        for part in ("transformer", "vae"):
            (tmp_path / part).mkdir()
            (tmp_path / part / "config.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"there are more in transformer, vae"):
            load_transformer(tmp_path)
