"""`run` on a workflow."""

from __future__ import annotations

import json
from pathlib import Path

from tests.batch.fake_batch import api_graph
from tests.cli.command_line import ROOT, call, call_apart


def test_run_prints_the_picture_the_time_and_the_memory(tmp_path):
    workflow = ROOT / "workflows" / "text_to_image.json"
    done = call_apart("run", str(workflow), "--set", "FluxSampler.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for part in ("text encoders", "transformer", "VAE decoder"):
        assert any(line.startswith(part) and "MiB" in line for line in lines)
    (picture,) = (line.removeprefix("picture: ") for line in lines if line.startswith("picture: "))
    assert Path(picture).is_relative_to(tmp_path / "output") and Path(picture).is_file()
    assert any(line.startswith("took ") for line in lines)


def test_a_batch_in_the_graph_is_told_and_a_row_without_a_picture_is_a_failure(tmp_path):
    (tmp_path / "input").mkdir()
    table = tmp_path / "input" / "t.csv"
    table.write_text("prompt,seed\na heart,1\na circle,x\n")
    data = api_graph("batch_table")
    (node,) = (node for node in data.values() if node["class_type"] == "FluxFitTable")
    node["inputs"] |= {"table": "t.csv", "grid": "", "mapping": "prompt=3.prompt"}
    (tmp_path / "w.json").write_text(json.dumps(data))
    done = call("run", "w.json", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "1 of 1 job is done: 1 drawn" in done.stdout and "results.csv" in done.stdout
    table.write_text("prompt,seed\na heart,1\n")
    again = call("run", "w.json", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    (batch,) = json.loads(again.stdout)["batches"]
    assert (batch["done"], batch["drawn"], batch["failed"]) == (1, 0, 0)
    assert Path(batch["sheet"]).name == "index.html"
