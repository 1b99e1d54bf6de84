"""What a worker does on its node, in this process and without Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fluxfit.batch import ray_actor, ray_drawer
from fluxfit.batch.draw import picture_path
from fluxfit.batch.jobs import Job
from fluxfit.batch.node_files import NodeFiles
from fluxfit.batch.ray_drawer import open_drawer, task_for
from fluxfit.batch.ray_workers import token_in
from fluxfit.nodes.headless import from_api

from .fake_batch import FakeDrawer, api_graph

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cheap(monkeypatch):
    monkeypatch.setattr(ray_drawer, "Drawer", lambda graph, private: drawer_of(graph))
    monkeypatch.setattr(ray_drawer.torch, "set_num_threads", lambda threads: None)


def drawer_of(graph: dict) -> FakeDrawer:
    drawer = FakeDrawer()
    drawer.graph = from_api(graph)  # type: ignore[attr-defined]
    return drawer


def task(folder: Path, token: str = "") -> dict:
    return task_for(api_graph(), folder, private=False, threads=1, token=token)


def sent(**more: object) -> dict:
    job = Job("ab" * 12, 1, {"3.prompt": "a heart"})
    needed = NodeFiles(from_api(api_graph())).needed(job)
    return {"id": job.id, "line": 1, "values": job.values, "files": list(needed)} | more


def test_a_picture_is_written_where_the_folder_is_the_drivers(tmp_path):
    with token_in(tmp_path) as token:
        drawer, facts = open_drawer(task(tmp_path, token))
    assert drawer is not None and facts["device"]
    answer = drawer.draw(sent())
    (name, content, pixels), *others = answer["pictures"]
    assert content is None and not others and answer["error"] is None
    assert (tmp_path / picture_path(name)).read_bytes() == drawer.drawer.draw(
        Job(answer["pictures"][0][0][:24], 1, {"3.prompt": "a heart"})
    )[0].content
    assert len(pixels) == 64 and not (tmp_path / ".shared").exists()


def test_bytes_go_back_where_the_folder_is_another(tmp_path):
    with token_in(tmp_path):
        drawer, _ = open_drawer(task(tmp_path, "another token"))
    assert drawer is not None
    ((_, content, _),) = drawer.draw(sent())["pictures"]
    assert content.startswith(b"\x89PNG") and not list(tmp_path.iterdir())


def test_other_sources_are_refused_with_both_versions(tmp_path):
    drawer, facts = open_drawer(task(tmp_path) | {"version": "0.0.9", "sources": "other"})
    assert drawer is None and facts["kind"] == "setup"
    assert "expected 0.0.9" in facts["unfit"]


def test_a_model_that_is_not_here_makes_the_node_unfit(tmp_path):
    drawer, _ = open_drawer(task(tmp_path))
    assert drawer is not None
    files = [["1.transformer", "absent.safetensors", "f" * 64]]
    answer = drawer.draw(sent(files=files))
    assert answer["kind"] == "files" and "absent.safetensors" in answer["unfit"]


def test_a_folder_that_cannot_be_written_makes_the_node_unfit(tmp_path):
    with token_in(tmp_path) as token:
        drawer, _ = open_drawer(task(tmp_path, token))
    assert drawer is not None
    (tmp_path / "pictures").write_text("in the way")
    answer = drawer.draw(sent())
    assert answer["kind"] == "disk" and str(tmp_path) in answer["unfit"]


def test_what_a_node_refuses_is_the_jobs_failure(tmp_path):
    drawer, _ = open_drawer(task(tmp_path))
    assert drawer is not None

    def refuse(job: Job) -> None:
        raise ValueError("too\nwide")

    drawer.drawer.on_job = refuse  # type: ignore[attr-defined]
    answer = drawer.draw(sent())
    assert answer["error"] == "too wide" and not answer["retryable"] and not answer["pictures"]


def test_a_process_without_fluxfit_opens_the_drivers_folder(tmp_path):
    code = (
        "import runpy, sys\n"
        f"actor = runpy.run_path({str(Path(ray_actor.__file__))!r})\n"
        f"actor['open_package']({str(ROOT)!r}, {str(ROOT)!r})\n"
        "import fluxfit.batch.ray_drawer as drawer\n"
        "print(drawer.sources_digest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert run.stdout.strip() == ray_drawer.sources_digest()
