"""What a person can do to a batch, and what a machine can: one line each, and nothing lost."""

from __future__ import annotations

import errno
import json
import sqlite3

import pytest
from fluxfit.batch import run as run_module
from fluxfit.batch.columns import ColumnError
from fluxfit.batch.manifest import NAME, Manifest, ManifestError
from fluxfit.batch.queue import JobQueue

from flux_core import files as files_module
from flux_core.errors import ConfigError

from .fake_batch import FakeDrawer, Lines, api_graph, draw_batch, entries, pictures

GRID = ("seed=1..6",)


def full_after(count):
    """A sync that finds the disk full at the call after so many."""
    calls = []

    def sync(*_):
        calls.append(1)
        if len(calls) > count:
            raise OSError(errno.ENOSPC, "No space left on device")

    return sync


def goes_on(folder):
    """The next run draws what is missing, and all is as if drawn at once."""
    summary = draw_batch(folder, grid=GRID)
    alone = folder / "alone"
    alone.mkdir()
    draw_batch(alone, grid=GRID)
    assert summary.done == 6 and pictures(folder) == pictures(alone)
    ids = [entry["job"] for entry in entries(folder)]
    assert len(ids) == len(set(ids)) == 6
    assert not list((folder / "out").rglob("*.partial"))


@pytest.mark.parametrize("where", ["pictures", "manifest"])
def test_a_full_disk_ends_the_run_and_loses_nothing(where, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        if where == "pictures":
            patch.setattr(files_module, "sync", full_after(3))
        else:
            patch.setattr("fluxfit.batch.manifest.os.fsync", full_after(2 + 2 * 3))
        with pytest.raises(OSError, match="No space left on device: 3 of 6 jobs are done") as full:
            draw_batch(tmp_path, grid=GRID)
    assert str(tmp_path / "out") in str(full.value) and "\n" not in str(full.value)
    assert len(entries(tmp_path)) == 3
    goes_on(tmp_path)


@pytest.mark.parametrize("moment", ["drawing", "between picture and line"])
def test_an_interrupt_says_how_to_go_on(moment, tmp_path, monkeypatch):
    shown = Lines()

    def interrupt(*_):
        if len(pictures(tmp_path)) >= 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if moment == "drawing":
            draw_batch(tmp_path, FakeDrawer(interrupt), grid=GRID, progress=shown)
        add = Manifest.add
        patch.setattr(Manifest, "add", lambda self, entry: interrupt() or add(self, entry))
        draw_batch(tmp_path, grid=GRID, progress=shown)
    assert shown.lines[-1].endswith("of 6 jobs are done; the same command goes on from there")
    goes_on(tmp_path)


def test_a_torn_manifest_is_mended(tmp_path):
    draw_batch(tmp_path, grid=GRID)
    path = tmp_path / "out" / NAME
    path.write_bytes(path.read_bytes()[:-30])
    goes_on(tmp_path)


def test_a_manifest_that_somebody_edited_is_refused(tmp_path):
    draw_batch(tmp_path, grid=GRID)
    path = tmp_path / "out" / NAME
    path.write_text(path.read_text().replace('"line"', "line", 1))
    with pytest.raises(ManifestError, match=r"manifest.jsonl: line 2 is no JSON"):
        draw_batch(tmp_path, grid=GRID)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file/out: cannot be written \(Not a directory\)"):
        draw_batch(tmp_path / "file", grid=GRID)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(ConfigError, match=r"out: cannot be written \(Read-only file system\)"):
        draw_batch(tmp_path, grid=GRID)


def test_a_scratch_file_without_room_is_told(tmp_path, monkeypatch):
    def full(self):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(JobQueue, "order", full)
    with pytest.raises(OSError, match=r"scratch file .* disk is full: .*SQLITE_TMPDIR"):
        draw_batch(tmp_path, grid=GRID)


def test_a_manifest_that_cannot_be_begun_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("fluxfit.batch.manifest.os.fsync", full_after(0))
    with pytest.raises(ConfigError, match=r"manifest.jsonl: cannot be written \(No space left"):
        draw_batch(tmp_path, grid=GRID)


def test_a_folder_of_something_else_keeps_what_it_has(tmp_path):
    out, shown = tmp_path / "out", Lines()
    out.mkdir()
    (out / "holiday.jpg").write_bytes(b"mine")
    draw_batch(tmp_path, grid=GRID, progress=shown)
    assert "has other files and folders (1), which stay as they are" in shown.lines[0]
    assert (out / "holiday.jpg").read_bytes() == b"mine"


def test_results_of_something_else_are_not_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"has results.csv and no manifest.jsonl"):
        draw_batch(tmp_path, grid=GRID)
    (tmp_path / "out" / "results.csv").unlink()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("")
    with pytest.raises(ConfigError, match="is a file, expected a folder"):
        draw_batch(tmp_path, grid=GRID)


def test_another_workflow_in_the_same_folder_is_told(tmp_path):
    draw_batch(tmp_path, grid=GRID)
    other = api_graph()
    other["6"]["inputs"]["steps"] = 2
    summary = draw_batch(tmp_path, grid=GRID, graph=other)
    assert (summary.drawn, summary.earlier) == (6, 6)
    assert "pictures of 6 jobs of other rows" in str(summary)


def test_broken_rows_are_told_by_line_and_the_others_drawn(tmp_path):
    shown = Lines()
    table = "prompt,seed\na,1\nb,x\nc\na,1\nd,-5\ne,5\n"
    summary = draw_batch(tmp_path, table=table, progress=shown)
    assert (summary.rows, summary.broken, summary.duplicates, summary.drawn) == (6, 3, 1, 2)
    lines = [line.partition("table.csv: ")[2] for line in shown.lines]
    assert lines[0].startswith("line 3: node 6 (FluxSampler): 'seed' is 'x', expected INT")
    assert lines[1] == "line 4: 1 cell, expected 2: left out"
    assert lines[2] == "line 5: asks for the same as that of 2: drawn once"
    assert lines[3].startswith("line 6: node 6 (FluxSampler): 'seed' is -5")
    assert [error["line"] for error in summary.errors] == [3, 4, 6] and not summary.whole


def test_many_broken_rows_are_told_as_a_number(tmp_path):
    shown = Lines()
    draw_batch(tmp_path, table="seed\n1\n" + 50 * "x\n", progress=shown)
    assert len(shown.lines) == 21 and shown.lines[-1].startswith("and 30 more such rows")


def test_a_table_of_which_nothing_can_be_drawn_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="none of 2 rows can be drawn; the first: .*line 2: "):
        draw_batch(tmp_path, table="seed\nx\ny\n")
    with pytest.raises(ConfigError, match="table.csv: has no row"):
        draw_batch(tmp_path, table="seed\n")


@pytest.mark.parametrize(
    ("table", "grid", "message"),
    [
        ("sed\n1\n", (), "table.csv: column 'sed' is no input .* 'seed' comes nearest"),
        ("seed,6.seed\n1,1\n", (), "columns 'seed' and '6.seed' both set"),
        ("seed\n1\n", ("seed=1..3",), "table.csv: column 'seed' is in --grid too"),
        ("seed\n1\n", ("sampler=oiler",), "--grid sampler: .*'oiler', expected one of euler"),
    ],
)
def test_columns_that_are_wrong_end_it_before_anything_is_drawn(table, grid, message, tmp_path):
    drawer = FakeDrawer()
    with pytest.raises(ConfigError, match=message):
        draw_batch(tmp_path, drawer, table=table, grid=grid)
    assert not drawer.calls and not list((tmp_path / "out").rglob("*.png"))


def test_a_key_that_no_column_is_is_told_by_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"seed": 1}\n{"seeed": 2}\n')
    with pytest.raises(
        ColumnError, match=r"t.jsonl: line 2: column 'seeed' .*'seed' comes nearest"
    ):
        draw_batch(tmp_path, table=path)
    with pytest.raises(ColumnError, match=r"t.jsonl: line 1: column 'seed' is in --grid too"):
        draw_batch(tmp_path, table=path, grid=("seed=1..3",))


def test_private_keeps_texts_out_of_all_that_is_written(tmp_path):
    def fail(job):
        if job.line == 3:
            raise ValueError(f"no picture of {job.values['3.prompt']!r}")

    table = "prompt,seed\na secret,1\nanother secret,2\nsecret,secret\n"
    draw_batch(tmp_path, FakeDrawer(fail), table=table, private=True, sheet=True)
    assert [entry["values"] for entry in entries(tmp_path)] == [{"seed": 1}, {"seed": 2}]
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes(), path


@pytest.mark.parametrize("private", [True, False])
def test_a_folder_stays_as_private_as_it_was_begun(private, tmp_path):
    table = "prompt,seed\na secret,1\n"
    draw_batch(tmp_path, table=table, private=private)
    before = pictures(tmp_path)
    with pytest.raises(ConfigError, match=f"begun with{'' if private else 'out'} --private"):
        draw_batch(tmp_path, table=table + "b,2\n", private=not private)
    assert draw_batch(tmp_path, table=table, private=private).done == 1
    assert pictures(tmp_path) == before


def test_the_sheet_shows_the_rows_that_there_are(tmp_path):
    draw_batch(tmp_path, table="prompt,seed\nan old row,1\nb,2\n")
    draw_batch(tmp_path, table="prompt,seed\na,1\nb,2\nb,2\n", sheet=True)
    text = (tmp_path / "out" / "index.html").read_text()
    assert "an old row" not in text and '"done":2' in text
    data = json.loads((tmp_path / "out" / NAME).read_text().splitlines()[1])
    assert data["values"]["prompt"] == "an old row"


def test_a_sheet_that_fails_does_not_fail_the_batch(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("fluxfit.batch.sheet.write_sheet", fail)
    shown = Lines()
    summary = draw_batch(tmp_path, grid=GRID, sheet=True, progress=shown)
    assert summary.done == 6 and shown.lines == ["no sheet of the results: Permission denied"]
    assert run_module.BatchSettings().sheet
