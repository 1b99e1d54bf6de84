"""`batch` as a person and a program call it."""

from __future__ import annotations

import argparse
import csv
import json
import sys

import pytest
from fluxfit.cli.batch import check_ray_arguments

from tests.batch.fake_batch import LEAST

from .command_line import call

SMALL = ("--grid", *(f"{name}={value}" for name, value in LEAST.items()))


def test_a_table_is_drawn_and_the_same_command_draws_nothing_more(tmp_path):
    (tmp_path / "t.csv").write_text("what,seed\na red circle,1\na green square,2\nx,y\n")
    command = ("batch", "text_to_image.json", "t.csv", "--out", "out", "--map", "what=3.prompt")
    done = call(*command, *SMALL, cwd=tmp_path)
    assert done.returncode == 1  # since a row cannot be drawn
    assert done.stdout.startswith("2 of 2 jobs are done: 2 drawn in ")
    assert "t.csv: line 4: node 6 (FluxSampler): 'seed' is 'y', expected INT" in done.stderr
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == ["a red circle", "a green square", "x"]
    assert rows[2]["seed"] == "y"
    assert (tmp_path / "out" / rows[0]["file"]).is_file() and "'y'" in rows[2]["error"]
    assert (tmp_path / "out" / "index.html").is_file()
    again = call(*command, *SMALL, "--json", cwd=tmp_path)
    data = json.loads(again.stdout)
    assert (data["done"], data["drawn"], data["broken"], data["earlier"]) == (2, 0, 1, 0)
    assert data["errors"][0]["line"] == 4


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["text_to_image.json", "--out", "o"], 2, "expected a table, --grid, or both"),
        (["text_to_image.json", "--out", "o", "--grid", "seed"], 2, "expected NAME=VALUES"),
        (["text_to_image.json", "none.csv", "--out", "o"], 3, "none.csv: no such file"),
        (["nothing.json", "--out", "o", "--grid", "seed=1"], 3, "nothing.json: no such file"),
        (
            ["text_to_image.json", "--out", "o", "--grid", "seed=1", "--retries", "-1"],
            2,
            "--retries is -1, expected at least 0",
        ),
        (["text_to_image.json", "--out", "o", "--grid", "seed=1..3", "sed=1"], 2, "column 'sed'"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_exit_status(arguments, status, message, tmp_path):
    done = call("batch", *arguments, cwd=tmp_path)
    assert done.returncode == status and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2}, "--workers 2 says how to draw with --ray"),
        ({"ray": "local", "workers": 0}, "--workers is 0, expected at least 1"),
        ({"ray": "auto", "gpus_per_worker": -1.0}, "--gpus-per-worker is -1, expected at least 0"),
        ({"ray": "auto"}, "--ray needs Ray: pip install 'fluxfit\\[ray\\]'"),
    ],
)
def test_what_cannot_be_asked_of_ray_is_told_before_the_table_is_read(
    options, message, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ray", None)
    given = {"ray": None, "workers": None, "gpus_per_worker": None} | options
    with pytest.raises(ValueError, match=message):
        check_ray_arguments(argparse.Namespace(**given))
