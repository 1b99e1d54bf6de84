"""What a job's id depends on, and what is wrong with a workflow or a row."""

from __future__ import annotations

import pytest
from fluxfit.batch.columns import Columns
from fluxfit.batch.jobs import BrokenGraphError, JobMaker
from fluxfit.nodes import headless
from fluxfit.nodes.headless import from_api

from .fake_batch import api_graph


def maker(data=None):
    graph = from_api(data or api_graph())
    return JobMaker(graph, Columns(graph, {"prompt": "3.prompt"}))


def job_id(cells, data=None):
    return maker(data).job(1, cells, "t.csv").id


def test_the_id_is_that_of_the_graph_with_the_values_in_it():
    data = api_graph()
    data["3"]["inputs"]["prompt"] = "a cat"
    data["6"]["inputs"]["seed"] = 5
    plain = job_id({}, data)
    assert job_id({"prompt": "a cat", "seed": "5"}) == plain
    assert job_id({"prompt": "a cat"}, data) == job_id({"6.seed": 5.0}, data) == plain
    graph = from_api(data)
    headless.check(graph)
    assert len(plain) == 24 and plain != job_id({"prompt": "a cat"})


def test_what_no_picture_depends_on_makes_no_other_job():
    assert job_id({"filename_prefix": "there"}) == job_id({"OffloadPolicy.mode": "stream"})
    assert job_id({"filename_prefix": "there"}) == job_id({})


def test_each_row_has_the_id_that_it_has_alone():
    rows = [
        {"seed": 1},
        {"seed": 2, "prompt": "a"},
        {"prompt": "a"},
        {"width": 128},
        {"transformer_precision": "int8"},
        {"transformer_precision": "int8", "seed": 1},
    ]
    together = maker()
    ids = [together.job(1, cells, "t.csv").id for cells in rows]
    assert ids == [job_id(cells) for cells in rows] and len(set(ids)) == len(rows)


def test_a_file_that_only_the_workflow_names_has_to_be_there():
    data = api_graph()
    data["2"]["inputs"]["transformer"] = "gone.safetensors"
    with pytest.raises(BrokenGraphError, match="node 2 .*'gone.safetensors'"):
        job_id({"seed": 1}, data)


def test_a_value_that_the_workflow_has_wrong_is_for_each_row_to_set():
    data = api_graph()
    data["2"]["inputs"]["transformer"] = "gone.safetensors"
    rows = maker(data)
    good = rows.job(1, {"transformer": "fluxfit_pocket.safetensors"}, "t.csv")
    assert good.id == job_id({})
    with pytest.raises(ValueError, match="leaves 'transformer' empty, and in the workflow"):
        rows.columns.find("transformer", "t.csv")
        rows.job(2, {"seed": 1}, "t.csv")


def test_a_workflow_that_saves_nothing_is_refused():
    data = {key: item for key, item in api_graph().items() if item["class_type"] != "SaveImage"}
    with pytest.raises(headless.WorkflowError, match="no node saves a picture"):
        job_id({}, data)


def test_a_picture_that_a_row_names_counts_by_its_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input").mkdir()
    for name, content in {"a": b"1", "b": b"2", "c": b"1"}.items():
        (tmp_path / "input" / f"{name}.png").write_bytes(content)
    data = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }
    rows = maker(data)
    ids = [rows.job(1, {"image": f"{name}.png"}, "t.csv").id for name in "abc"]
    assert ids[0] == ids[2] != ids[1]
    with pytest.raises(ValueError, match=r"node 1 \(LoadImage\): 'image': no picture 'd.png'"):
        rows.job(1, {"image": "d.png"}, "t.csv")
