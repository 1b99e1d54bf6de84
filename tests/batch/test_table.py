"""Tables of every kind, whole and damaged."""

from __future__ import annotations

import tracemalloc

import pytest
from fluxfit.batch import table as table_module
from fluxfit.batch.table import BrokenRow, Row, TableError, open_table


def rows(path):
    return list(open_table(path).rows())


@pytest.mark.parametrize(
    "text",
    [
        b'prompt,seed\n"a, ""red"" heart\nin two lines",1\nx,2\n',
        b'\xef\xbb\xbfprompt;seed\r\n"a, ""red"" heart\nin two lines";1\r\nx;2\r\n',
        b'prompt\tseed\n"a, ""red"" heart\nin two lines"\t1\n\nx\t2',
        b'"prompt" , seed\n"a, ""red"" heart\nin two lines",1\nx,2',
    ],
    ids=["comma", "semicolon, mark, CRLF", "tab, blank line, no end", "spaces in names"],
)
def test_dialects_of_csv(text, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(text if b" , " not in text else text.replace(b'"prompt" ,', b"prompt ,"))
    assert open_table(path).columns == ("prompt", "seed")
    first, second = rows(path)
    assert first == Row(2, {"prompt": 'a, "red" heart\nin two lines', "seed": "1"})
    assert second.line == (5 if b"\t" in text else 4) and second.cells["seed"] == "2"


def test_empty_cells_say_nothing(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n,1\n")
    assert rows(path) == [Row(2, {"b": "1"})]
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": null, "b": 1}\n\n{"a": ""}\n')
    assert rows(path) == [Row(1, {"b": 1}), Row(3, {"a": ""})]


def test_broken_rows_of_csv_are_told_by_line(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,2,3\n1\n"x"y,2\n1,2\n"open,2\n1,2\n')
    kinds = [(type(row).__name__, row.line) for row in rows(path)]
    assert kinds == [
        ("BrokenRow", 2),
        ("BrokenRow", 3),
        ("BrokenRow", 4),
        ("Row", 5),
        ("BrokenRow", 6),
    ]
    problems = [row.problem for row in rows(path) if isinstance(row, BrokenRow)]
    assert problems[:2] == ["3 cells, expected 2", "1 cell, expected 2"]
    assert problems[-1] == "a quotation mark is not closed, read up to line 7"


def test_broken_rows_of_json_are_told_by_line(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n{"a": \n[1]\n{"a": NaN}\n{"a": 1, "a": 2}\n{"b": 2}\n')
    all_rows = rows(path)
    assert [row.line for row in all_rows if isinstance(row, Row)] == [1, 6]
    problems = [row.problem for row in all_rows if isinstance(row, BrokenRow)]
    for problem, part in zip(
        problems,
        ["no JSON", "found list", "NaN is no number", "'a' is there twice"],
        strict=True,
    ):
        assert part in problem


def test_a_cell_without_end_is_bounded(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text('a,b\n"' + "x\n" * 600_000 + '",2\n1,2\n')
    tracemalloc.start()
    with pytest.raises(TableError, match=r"t.csv: line 2: a cell is longer than 1000000 letters"):
        rows(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(table_module, "LONGEST_LINE", 1000)
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + 2000 * "x" + '"}\n')
    with pytest.raises(TableError, match=r"t.jsonl: line 2 is longer than"):
        rows(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv: is empty"),
        ("t.csv", b"a,b,a\n", "t.csv: there are two columns 'a'"),
        ("t.csv", b"a,,c\n", "t.csv: column 2 has no name"),
        ("t.csv", b"a\n1\n\xe4\n", r"t.csv: line 3 is no UTF-8 text \(byte 1 is 0xe4\)"),
        ("t.csv", b"\xff\xfea\x00", "t.csv: is no UTF-8 text but UTF-16"),
        ("t.csv", b"PK\x03\x04", "t.csv: is a zip archive, expected a table"),
        ("t.xlsx", b"PK\x03\x04", "t.xlsx: expected a table that ends in .csv"),
        ("t.parquet", b"PAR1", "t.parquet: (cannot be read as Parquet|Parquet needs pyarrow)"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TableError, match=message) as caught:
        rows(path)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="t.csv: no such file"):
        open_table(tmp_path / "t.csv")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(TableError, match=r"pip install 'fluxfit\[parquet\]'"):
        open_table(tmp_path / "t.parquet")


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    columns = {"prompt": ["a", None, "c"], "seed": [1, 2, 3]}
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    table = open_table(path)
    assert table.columns == ("prompt", "seed") and table.unit == "row"
    assert list(table.rows()) == [
        Row(1, {"prompt": "a", "seed": 1}),
        Row(2, {"seed": 2}),
        Row(3, {"prompt": "c", "seed": 3}),
    ]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(TableError, match="cannot be read as Parquet"):
        open_table(path)


@pytest.mark.parametrize("text", ["prompt,seed\ra,1\rb,2\r", "prompt,seed\na\rb,1\n"])
def test_a_carriage_return_alone_is_told_in_words(text, tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(text.encode())
    try:
        problem = str(list(open_table(path).rows()))
    except TableError as fault:
        problem = str(fault)
    assert "a line ends in a carriage return alone" in problem and "universal" not in problem
