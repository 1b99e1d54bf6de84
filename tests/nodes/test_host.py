"""What nodes know of folders without a host."""

from __future__ import annotations

import os

from fluxfit.nodes import host


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
    names = host.dataset_names()
    assert {"cats", "cats/deep"} <= set(names) and not {"words", "."} & set(names)


def test_models_are_listed_by_their_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
    for name in ("a.gguf", "sub/b.gguf", "c.txt"):
        path = tmp_path / "diffusion_models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    names = host.model_names("diffusion_models")
    assert {"a.gguf", "sub/b.gguf"} <= set(names) and "c.txt" not in names
