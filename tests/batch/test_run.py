"""The driver: what is missing is drawn, once, whatever ends a run."""

from __future__ import annotations

import csv
import os
import random
import signal
import time

import pytest

from flux_core.errors import ConfigError

from .fake_batch import FakeDrawer, Lines, draw_batch, entries, pictures

TABLE = "prompt,seed\na heart,1\na circle,2\na heart,3\n"


def test_each_row_is_drawn_once_and_not_again(tmp_path):
    drawer = FakeDrawer()
    first = draw_batch(tmp_path, drawer, table=TABLE)
    assert (first.jobs, first.drawn, first.done, first.left) == (3, 3, 3, 0)
    again = draw_batch(tmp_path, drawer, table=TABLE)
    assert (again.jobs, again.drawn, again.done) == (3, 0, 3)
    assert set(drawer.calls.values()) == {1}
    assert len(pictures(tmp_path)) == len(entries(tmp_path)) == 3


def test_a_changed_row_is_a_new_job_and_the_old_picture_stays(tmp_path):
    draw_batch(tmp_path, table=TABLE)
    changed = draw_batch(tmp_path, table=TABLE.replace("circle", "square"))
    assert (changed.drawn, changed.done, changed.earlier) == (1, 3, 1)
    assert len(pictures(tmp_path)) == 4
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == ["a heart", "a square", "a heart"]
    assert all((tmp_path / "out" / row["file"]).is_file() for row in rows)


def test_rows_of_the_same_prompt_follow_each_other(tmp_path):
    draw_batch(tmp_path, table=TABLE)
    assert [entry["line"] for entry in entries(tmp_path)] == [2, 4, 3]


def results(folder):
    with open(folder / "out" / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_broken_rows_stand_in_the_results_with_their_cells(tmp_path):
    told_lines = Lines()
    table = f"prompt,seed\na heart,1\na box,x\n{'y' * 20_000},-1\none\n"
    draw_batch(tmp_path, table=table, sheet=True, progress=told_lines)
    cells = [(row["line"], row["prompt"], row["seed"]) for row in results(tmp_path)]
    assert cells[:2] == [("2", "a heart", "1"), ("3", "a box", "x")]
    assert cells[2] == ("4", 10_000 * "y" + " ...", "-1") and cells[3] == ("5", "one", "")
    assert '"broken":3' in (tmp_path / "out" / "index.html").read_text()
    draw_batch(tmp_path, table=table, progress=told_lines)  # without a sheet
    assert told_lines.lines[-1].endswith("index.html and grid.png are those of an earlier run")


def test_where_no_row_can_be_drawn_the_results_say_why(tmp_path):
    with pytest.raises(ConfigError, match="none of 1 row can be drawn; the first: .*'x'"):
        draw_batch(tmp_path, table="prompt,seed\na heart,x\n")
    (row,) = results(tmp_path)
    assert (row["prompt"], row["seed"], row["file"]) == ("a heart", "x", "") and "INT" in row[
        "error"
    ]


def test_private_results_have_no_cell_of_a_broken_row(tmp_path):
    draw_batch(tmp_path, table="prompt,seed\na heart,1\na box,my secret\n", private=True)
    assert "secret" not in (tmp_path / "out" / "results.csv").read_text()


def test_a_failed_job_is_tried_again_and_others_go_on(tmp_path):
    def fail(job):
        if job.values["6.seed"] == 2:
            raise RuntimeError("a kernel failed")

    drawer, told_lines = FakeDrawer(fail), Lines()
    summary = draw_batch(tmp_path, drawer, table=TABLE, retries=2, progress=told_lines)
    assert (summary.drawn, summary.failed) == (2, 1)
    assert sorted(drawer.calls.values()) == [1, 1, 3]
    (failed,) = (entry for entry in entries(tmp_path) if "error" in entry)
    assert failed["line"] == 3 and failed["tries"] == 3 and "a kernel failed" in failed["error"]
    assert told_lines.lines == ["line 3: RuntimeError: a kernel failed"]
    assert draw_batch(tmp_path, table=TABLE).drawn == 1  # the next run tries it anew


def test_half_an_emoji_leaves_its_row_out_and_the_others_go_on(tmp_path):
    table, told_lines = tmp_path / "t.jsonl", Lines()
    texts = [r'"prompt": "cut emoji \ud83d"', r'"prompt": "whole \ud83d\ude00"', r'"a\ud83d": 1']
    table.write_text("".join(f"{{{text}}}\n" for text in texts))
    summary = draw_batch(tmp_path, table=table, progress=told_lines)
    assert (summary.drawn, summary.broken) == (1, 2)
    assert "t.jsonl: line 1: node 3 (FluxTextEncode): 'prompt' is 'cut" in told_lines.lines[0]
    assert "no Unicode" in told_lines.lines[0]
    assert "line 3: the key 'a\\ud83d' is no Unicode" in told_lines.lines[1]
    (done,) = entries(tmp_path)
    assert done["values"] == {"prompt": "whole \U0001f600"}


def test_bad_input_is_not_tried_again(tmp_path):
    def fail(job):
        raise ValueError("no such picture")

    drawer = FakeDrawer(fail)
    summary = draw_batch(tmp_path, drawer, table=TABLE, retries=5)
    assert summary.failed == 3 and set(drawer.calls.values()) == {1}


def test_fail_fast_ends_with_the_first_failure(tmp_path):
    def fail(job):
        if job.line == 4:
            raise RuntimeError("no")

    summary = draw_batch(tmp_path, FakeDrawer(fail), table=TABLE, fail_fast=True)
    assert (summary.drawn, summary.failed, summary.left) == (1, 1, 1)


def test_a_limit_draws_so_many_and_the_next_run_the_rest(tmp_path):
    assert draw_batch(tmp_path, table=TABLE, limit=2).left == 1
    assert draw_batch(tmp_path, table=TABLE, limit=2).drawn == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a copy of this process is killed")
def test_a_killed_driver_loses_nothing_and_nothing_is_drawn_twice(tmp_path):
    alone, grid, moment = tmp_path / "alone", ("seed=1..200",), random.Random(0)
    alone.mkdir()
    draw_batch(alone, grid=grid)
    kills = 0
    while kills < 10:
        child = os.fork()
        if not child:
            draw_batch(tmp_path, grid=grid)
            os._exit(0)
        time.sleep(moment.uniform(0.01, 0.06))
        os.kill(child, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        if len(pictures(tmp_path)) == 200:
            break
    summary = draw_batch(tmp_path, grid=grid)
    assert kills > 1 and summary.done == 200
    assert pictures(tmp_path) == pictures(alone)
    ids = [entry["job"] for entry in entries(tmp_path)]
    assert len(ids) == len(set(ids)) == 200
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_two_drivers_on_one_folder_are_refused(tmp_path):
    def second(job):
        with pytest.raises(ConfigError, match="another batch is drawn in this folder already"):
            draw_batch(tmp_path, table=TABLE)

    assert draw_batch(tmp_path, FakeDrawer(second), table=TABLE).drawn == 3
