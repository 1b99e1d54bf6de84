"""Loaders: which files they offer and open."""

from __future__ import annotations

from pathlib import Path

import pytest
from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless, host
from fluxfit.nodes.loaders import SAME_FILE

from tests.nodes.node_calls import empty, sample


class TestFolders:
    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..\\x"])
    def test_names_that_climb_out_are_refused(self, name):
        with pytest.raises(ValueError, match="leaves the model folders"):
            host.model_path(name, "vae")

    def test_links_that_stand_in_the_folders_are_followed(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path / "models"))
        (tmp_path / "models" / "vae").mkdir(parents=True)
        (tmp_path / "disk" / "vaes").mkdir(parents=True)
        (tmp_path / "disk" / "vaes" / "b.safetensors").write_bytes(b"x")
        for name in ("vaes", "vaes/b.safetensors"):
            link = tmp_path / "models" / "vae" / Path(name).name
            link.symlink_to(tmp_path / "disk" / name)
        for name in ("b.safetensors", "vaes/b.safetensors"):
            assert host.model_path(name, "vae").read_bytes() == b"x"
            assert name in host.model_names("vae")

    def test_a_person_s_own_models_come_with_the_pocket_ones(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
        (tmp_path / "vae" / "sub").mkdir(parents=True)
        (tmp_path / "vae" / "sub" / "mine.safetensors").write_bytes(b"x")
        assert {"sub/mine.safetensors", "fluxfit_pocket_vae.safetensors"} <= set(
            host.model_names("vae")
        )

    def test_one_file_can_serve_all_parts(self, tmp_path, monkeypatch):
        from safetensors.torch import save_file

        from flux_core.checkpoint.reader import SafetensorsFile

        parts = {
            "model.diffusion_model.": ("diffusion_models", ""),
            "vae.": ("vae", "_vae"),
            "text_encoders.clip_l.transformer.": ("text_encoders", "_clip_l"),
            "text_encoders.t5xxl.transformer.": ("text_encoders", "_t5"),
        }
        everything = {}
        for prefix, (folder, suffix) in parts.items():
            file = SafetensorsFile(host.POCKET / folder / f"fluxfit_pocket{suffix}.safetensors")
            everything |= {prefix + name: file.read(name) for name in file.entries}
        checkpoints_folder = tmp_path / "checkpoints"
        checkpoints_folder.mkdir()
        save_file(everything, checkpoints_folder / "all.safetensors")
        for name in ("tokenizer", "tokenizer_2"):
            (checkpoints_folder / name).symlink_to(host.POCKET / "text_encoders" / name)
        monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
        node = NODE_CLASS_MAPPINGS["FluxLoaderFP8"]()
        loaded = node.load(
            "all.safetensors", "bf16", SAME_FILE, "bf16", SAME_FILE, "bf16", SAME_FILE, "bf16"
        )
        positive = NODE_CLASS_MAPPINGS["FluxTextEncode"]().encode(loaded[1], "a ring", 3.5)[0]
        assert sample(loaded, positive, empty())[0]["samples"].isfinite().all()


def test_gguf_files_are_offered(monkeypatch, tmp_path):
    folder = tmp_path / "models" / "diffusion_models"
    folder.mkdir(parents=True)
    (folder / "flux1-dev-Q8_0.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path / "models"))
    specs = headless.input_specs(NODE_CLASS_MAPPINGS["FluxFitTransformerLoader"])
    assert "flux1-dev-Q8_0.gguf" in specs["transformer"][0]
