"""Files that jobs read, compared between the driver's node and another."""

from __future__ import annotations

import shutil

import pytest
from fluxfit.batch import node_files
from fluxfit.batch.jobs import Job
from fluxfit.batch.node_files import NodeFileError, NodeFiles
from fluxfit.nodes.headless import from_api

from flux_core.pocket import POCKET

from .fake_batch import api_graph

TRANSFORMER = "fluxfit_pocket.safetensors"


def files() -> NodeFiles:
    return NodeFiles(from_api(api_graph()))


def job(**values: object) -> Job:
    return Job("0" * 24, 1, {name.replace("__", "."): value for name, value in values.items()})


def loader() -> str:
    """The number of the node that opens the models."""
    graph = api_graph()
    return next(key for key, item in graph.items() if TRANSFORMER in item["inputs"].values())


def test_a_job_needs_the_models_of_its_graph_by_content():
    needed = files().needed(job())
    names = {file.name for file in needed}
    assert TRANSFORMER in names and len(names) == 4
    assert all(len(file.digest) == 64 for file in needed)
    files().check(job(), needed)


def test_files_are_looked_at_once_whatever_else_the_rows_say(monkeypatch):
    looked = []
    monkeypatch.setattr(
        node_files, "content_hash", lambda path: looked.append(path) or f"{len(looked):064x}"
    )
    mine = files()
    for number in range(50):
        mine.needed(Job(f"{number:024x}", number, {"3.prompt": f"number {number}"}))
    assert len(looked) == 4


def test_another_file_of_the_name_is_told_with_what_was_expected(tmp_path, monkeypatch):
    needed = files().needed(job())
    folder = tmp_path / "diffusion_models"
    folder.mkdir()
    shutil.copy(POCKET / "diffusion_models" / TRANSFORMER, folder)
    with open(folder / TRANSFORMER, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
    digest = next(file.digest for file in needed if file.name == TRANSFORMER)
    with pytest.raises(NodeFileError, match=f"{TRANSFORMER}.* expected {digest[:12]}"):
        files().check(job(), needed)


def test_a_missing_file_is_told_with_the_node_that_names_it(tmp_path, monkeypatch):
    folder = tmp_path / "diffusion_models"
    folder.mkdir()
    shutil.copy(POCKET / "diffusion_models" / TRANSFORMER, folder / "other.safetensors")
    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path))
    row = Job("0" * 24, 1, {f"{loader()}.transformer": "other.safetensors"})
    needed = files().needed(row)
    assert "other.safetensors" in {file.name for file in needed}
    monkeypatch.delenv("FLUXFIT_MODELS")
    digest = next(file.digest for file in needed if file.name == "other.safetensors")
    with pytest.raises(NodeFileError, match=f"no file 'other.*the driver has .*{digest[:12]}"):
        files().check(row, needed)
