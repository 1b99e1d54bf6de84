"""The page of a batch: what it holds, what it cannot be broken by, and what a second time costs."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fluxfit.batch import sheet, sheet_grid
from fluxfit.batch.report import first_pictures
from fluxfit.batch.sheet import write_sheet
from fluxfit.batch.sheet_jobs import read_results
from fluxfit.batch.thumbnails import SIDE, receipt_script
from PIL import Image

from tests.batch.folders import append, draw, fail, full_grid


class Scripts(HTMLParser):
    """What a browser takes for scripts, and for the title."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tag = tag
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag in ("script", "title"):
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""

    def handle_data(self, data: str) -> None:
        if getattr(self, "tag", "") in ("script", "title"):
            self.texts[-1] += data


def data_of(folder: Path) -> dict:
    """What the page's script reads, as an HTML parser finds it."""
    _, data, script = Scripts((folder / "index.html").read_text(encoding="utf-8")).texts
    assert "sheet_receipt" in script
    return json.loads(data)


def test_every_job_is_there_with_values_picture_seconds_and_error(tmp_path):
    append(tmp_path, {"manifest": 1, "fluxfit": "0.1.0"})
    first = draw(tmp_path, 2, {"5.seed": 1, "2.text": "a fox"}, pictures=2)
    broken = fail(tmp_path, 3, {"5.seed": 2, "2.text": "a fox"}, "5.steps is 0")
    written = write_sheet(tmp_path, "foxes")
    data = data_of(tmp_path)
    assert (data["title"], data["done"], data["failed"]) == ("foxes", 1, 1)
    assert [c["label"] for c in data["columns"]] == ["seed", "text"]
    done, failed = data["rows"]
    assert done[:6] == [first, 2, "", 0.5, "local", 1] and done[7] == [1, "a fox"]
    assert failed[:6] == [broken, 3, "5.steps is 0", None, "", 2] and failed[6] == []
    assert written.left_out == ""
    for file, fault in done[6]:
        assert not fault and (tmp_path / file).is_file()
        small = tmp_path / file.replace("pictures", "thumbnails").replace(".png", ".jpg")
        with Image.open(small) as picture:
            assert picture.format == "JPEG" and max(picture.size) <= SIDE
        script = small.with_suffix(".js").read_text()
        assert (
            script.startswith(f'sheet_receipt("{file}", ')
            and "on cpu" in script
            and "euler" in script
        )


@pytest.mark.parametrize("text", [None, "no JSON", "[]", '{"version": 99}', '{"did": 3}'])
def test_a_receipt_that_is_none_is_nothing_to_say(text):
    script = receipt_script("pictures/ab/ab.png", text)
    words = json.loads("[" + script.removeprefix("sheet_receipt(").removesuffix(");\n") + "]")
    assert words == ["pictures/ab/ab.png", ""]


def test_texts_of_a_table_cannot_break_the_page(tmp_path):
    evil = "</script><script>alert(1)</script><!--<script> & \u2028 \" ' \ud800"
    append(tmp_path, {"manifest": 1})
    draw(tmp_path, 2, {"2.text": evil})
    fail(tmp_path, 3, {"2.text": "b"}, evil)
    write_sheet(tmp_path, "<b>&</b>")
    data = data_of(tmp_path)  # finds title, data and one script, no more
    assert data["rows"][0][7] == [evil] and data["rows"][1][2] == evil
    assert data["title"] == "<b>&</b>"


def test_the_page_loads_nothing_from_elsewhere(tmp_path):
    full_grid(tmp_path, [1], ["euler"])
    write_sheet(tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not [pair for pair in Scripts(text).attributes if pair[0] in ("src", "href")]
    assert "http:" not in text and "https:" not in text and "url(" not in text


def test_a_second_time_makes_only_what_is_new(tmp_path):
    full_grid(tmp_path, [1], ["euler", "heun"])
    write_sheet(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "thumbnails").rglob("*.*")}
    draw(tmp_path, 9, {"5.seed": 7, "5.sampler": "euler"})
    write_sheet(tmp_path)
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "thumbnails").rglob("*.*")}
    assert len(before) == 4 and len(after) == 6 and before.items() < after.items()
    assert len(data_of(tmp_path)["rows"]) == 3


def test_a_job_that_failed_and_was_drawn_later_is_done(tmp_path):
    append(tmp_path, {"manifest": 1})
    values = {"5.seed": 1}
    fail(tmp_path, 2, values, "no memory")
    draw(tmp_path, 2, values)
    with open(tmp_path / "manifest.jsonl", "a") as file:
        file.write('{"job": "abc", "li')  # torn by a crash
    results = read_results(tmp_path, 10)
    assert (results.done, results.failed, len(results.jobs)) == (1, 0, 1)
    assert not results.jobs[0].error


def test_pictures_of_a_folder_are_there_whatever_failed_before_them(tmp_path):
    fail(tmp_path, 2, {"seed": 1}, "no")
    fail(tmp_path, 3, {"seed": 2}, "no")
    draw(tmp_path, 4, {"seed": 3})
    assert [tuple(image.shape) for image in first_pictures(tmp_path, 1)] == [(1, 32, 48, 3)]


def test_jobs_stand_in_the_order_of_the_table(tmp_path):
    append(tmp_path, {"manifest": 1})
    for line in (4, 2, 3):
        draw(tmp_path, line, {"5.seed": line})
    assert [job.line for job in read_results(tmp_path, 10).jobs] == [2, 3, 4]
    cut = read_results(tmp_path, 2)
    assert [job.line for job in cut.jobs] == [2, 3] and cut.left_out == 1


def test_a_page_that_holds_not_all_jobs_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet, "MOST_JOBS", 2)
    full_grid(tmp_path, [1], ["a", "b", "c"])
    assert write_sheet(tmp_path).left_out == "the first 2 of 3 jobs"
    assert data_of(tmp_path)["left_out"] == "the first 2 of 3 jobs"


def test_a_picture_that_is_gone_or_broken_is_named(tmp_path):
    append(tmp_path, {"manifest": 1})
    gone, broken = (draw(tmp_path, line, {"5.seed": line}) for line in (2, 3))
    (tmp_path / f"pictures/{gone[:2]}/{gone}.png").unlink()
    (tmp_path / f"pictures/{broken[:2]}/{broken}.png").write_bytes(b"no picture")
    written = write_sheet(tmp_path)
    assert written.grid is None and written.left_out.startswith("2 pictures cannot be shown: ")
    (first,), (second,) = (row[6] for row in data_of(tmp_path)["rows"])
    assert first[1] == "the picture is not there any more" and broken in second[1]


def test_a_manifest_that_names_files_elsewhere_is_refused(tmp_path):
    append(tmp_path, {"job": "ab", "line": 1, "values": {}, "files": ["../secret.png"]})
    with pytest.raises(ValueError, match="leaves the folder"):
        write_sheet(tmp_path)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2, 3], "choice"),
        (list(range(40)), "number"),
        ([True, False], "choice"),
        (["a " * 50, "b"], "text"),
        ([f"word {i}" for i in range(40)], "text"),
        ([1, "auto"], "choice"),
    ],
)
def test_how_a_column_is_looked_through(tmp_path, values, kind):
    append(tmp_path, {"manifest": 1})
    for line, value in enumerate(values):
        fail(tmp_path, line, {"5.x": value}, "not drawn")
    write_sheet(tmp_path)
    assert data_of(tmp_path)["columns"] == [{"name": "5.x", "label": "x", "kind": kind}]


def test_two_inputs_of_a_name_keep_their_nodes():
    names = ["5.seed", "9.seed", "prompt", "2.text"]
    assert [sheet.label(name, names) for name in names] == ["5.seed", "9.seed", "prompt", "text"]


def test_the_grid_picture_has_a_row_a_seed(tmp_path):
    full_grid(tmp_path, [1, 2, 3], ["euler", "heun", "dpm", "lms"])
    assert write_sheet(tmp_path).grid == tmp_path / "grid.png"
    with Image.open(tmp_path / "grid.png") as picture:
        width, height = picture.size
        assert width == 4 * (48 + 4) and height > 3 * 32
        middle = [picture.getpixel((52 * x + 26, 16)) for x in range(4)]
    assert [red for red, _, _ in middle] == [40, 60, 80, 100]


def test_the_grid_picture_is_bounded_and_says_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sheet_grid, "MOST_CELLS", 6)
    full_grid(tmp_path, [1, 2, 3], ["euler", "heun", "dpm"], "a fox")
    write_sheet(tmp_path)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width == 3 * (48 + 4)
    note = sheet_grid.note(6, 9, 900)
    assert note == "6 of 9 pictures; index.html shows the others"
    monkeypatch.setattr(sheet_grid, "MOST_PIXELS", 1)
    write_sheet(tmp_path)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width == 48 + 4


def test_labels_of_the_grid_say_short_values_first():
    from fluxfit.batch.sheet_jobs import JobResult

    job = JobResult("ab", 3, {"2.text": "a very long prompt of a fox in snow", "5.seed": 7})
    label = sheet_grid.cell_label(job, ["2.text", "5.seed"], 192)
    assert label == "seed 7\na very long prompt of a…"
    assert sheet_grid.cell_label(job, [], 192) == "line 3"
