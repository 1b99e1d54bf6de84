"""Pictures that a crash left without a line in the manifest."""

from __future__ import annotations

import pytest
from fluxfit.batch.manifest import NAME

from .fake_batch import FakeDrawer, draw_batch, entries, pictures

GRID = ("seed=1..4",)


def lose_lines(folder, count):
    """What a crash leaves between a picture and its line."""
    path = folder / "out" / NAME
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-count]))


@pytest.mark.parametrize("number", [1, 3], ids=["a picture a job", "three pictures a job"])
def test_whole_pictures_are_adopted(number, tmp_path):
    draw_batch(tmp_path, FakeDrawer(pictures=number), grid=GRID)
    before = pictures(tmp_path)
    lose_lines(tmp_path, 2)
    drawer = FakeDrawer(pictures=number)
    summary = draw_batch(tmp_path, drawer, grid=GRID)
    assert (summary.adopted, summary.drawn, summary.done) == (2, 0, 4) and not drawer.calls
    assert pictures(tmp_path) == before and len(before) == 4 * number
    adopted = [entry for entry in entries(tmp_path) if entry.get("adopted")]
    assert len(adopted) == 2 and all(len(entry["files"]) == number for entry in adopted)


def test_what_is_not_whole_is_drawn_again(tmp_path):
    draw_batch(tmp_path, FakeDrawer(pictures=2), grid=GRID)
    before = pictures(tmp_path)
    lose_lines(tmp_path, 4)
    paths = sorted((tmp_path / "out" / "pictures").rglob("*.png"))
    paths[0].unlink()
    paths[2].write_bytes(paths[2].read_bytes()[:-20])
    paths[4].write_bytes(paths[5].read_bytes())
    half = paths[6].with_name(f".{paths[6].name}.1-2-3.partial")
    half.write_bytes(b"half")
    summary = draw_batch(tmp_path, FakeDrawer(pictures=2), grid=GRID)
    assert (summary.adopted, summary.drawn) == (1, 3)
    assert pictures(tmp_path) == before and not half.exists()


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-9], lambda content: b"x" * 99]
)
def test_a_picture_of_a_job_that_is_done_and_that_is_broken_is_drawn_again(damage, tmp_path):
    draw_batch(tmp_path, grid=GRID)
    before = pictures(tmp_path)
    path = next((tmp_path / "out").rglob("*.png"))
    path.write_bytes(damage(path.read_bytes()))
    assert draw_batch(tmp_path, grid=GRID).drawn == 1
    assert pictures(tmp_path) == before


def test_a_picture_of_a_job_that_is_done_and_that_somebody_deleted_is_drawn_again(tmp_path):
    draw_batch(tmp_path, grid=GRID)
    before = pictures(tmp_path)
    next((tmp_path / "out").rglob("*.png")).unlink()
    assert draw_batch(tmp_path, grid=GRID).drawn == 1
    assert pictures(tmp_path) == before
