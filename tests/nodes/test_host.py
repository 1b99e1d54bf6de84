"""What nodes know of folders without a host."""

from __future__ import annotations

import os
import sys
import types

import pytest
from fluxfit.nodes import host, training_files


def test_folders_are_listed_without_what_is_hidden_and_without_end(tmp_path):
    for name in ("a/b/x.png", "a/.hidden/y.png", "a/._x.png", "c/z.gguf"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    os.symlink(tmp_path, tmp_path / "a" / "loop", target_is_directory=True)
    listed = [
        (folder / file).relative_to(tmp_path).as_posix()
        for folder, files in host.folders_below(tmp_path)
        for file in files
    ]
    assert listed == ["a/b/x.png", "c/z.gguf"]


def test_folders_of_pictures_are_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("input/cats/1.PNG", "input/cats/deep/2.jpg", "input/words/1.txt", "input/3.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    names = training_files.dataset_names()
    assert {"cats", "cats/deep"} <= set(names) and not {"words", "."} & set(names)


def test_models_are_listed_by_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
    for name in ("a.gguf", "sub/b.gguf", "c.txt"):
        path = tmp_path / "diffusion_models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    names = host.model_names("diffusion_models")
    assert {"a.gguf", "sub/b.gguf"} <= set(names) and "c.txt" not in names


def test_two_folders_with_the_same_name_can_both_be_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
    for name in ("diffusion_models/a.gguf", "checkpoints/a.gguf", "checkpoints/b.gguf"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    folders = ("diffusion_models", "checkpoints")
    names = host.model_names(*folders)
    assert {"a.gguf", "checkpoints/a.gguf", "b.gguf"} <= set(names)
    assert "checkpoints/b.gguf" not in names
    assert host.model_path("a.gguf", *folders) == tmp_path / "diffusion_models/a.gguf"
    assert host.model_path("checkpoints/a.gguf", *folders) == tmp_path / "checkpoints/a.gguf"
    with pytest.raises(FileNotFoundError, match="diffusion_models or checkpoints"):
        host.model_path("checkpoints/c.gguf", *folders)
    with pytest.raises(ValueError, match="leaves the model folders"):
        host.model_path("checkpoints/../a.gguf", *folders)


def test_the_host_s_tokenizers_are_those_beside_its_code(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    assert host.host_tokenizers() is None
    folders = tmp_path / "comfy/sd1_tokenizer", tmp_path / "comfy/text_encoders/t5_tokenizer"
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    assert host.host_tokenizers() is None, "no folder is there yet"
    for folder in folders:
        folder.mkdir(parents=True)
    assert host.host_tokenizers() == folders
    # inside the host its models may lie elsewhere than its code
    monkeypatch.delenv("COMFYUI_PATH")
    code = types.SimpleNamespace(__file__=str(tmp_path / "comfy/sd1_clip.py"))
    monkeypatch.setitem(sys.modules, "folder_paths", types.ModuleType("folder_paths"))
    monkeypatch.setattr(host, "comfy", lambda name: code)
    assert host.host_tokenizers() == folders
