"""Grids and mappings typed into one text."""

from __future__ import annotations

import pytest
from fluxfit.batch.grid_text import grid_files, grid_of_text, mapping_of_text

from flux_core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "grid"),
    [
        ("", {}),
        ("seed=1..3", {"seed": [1, 2, 3]}),
        ("seed=1..2 sampler=euler,heun", {"seed": [1, 2], "sampler": ["euler", "heun"]}),
        ("5.seed=1,2\n\n  FluxSampler.cfg=1..2", {"5.seed": ["1", "2"], "FluxSampler.cfg": [1, 2]}),
        ("prompt=a red fox,a cat seed=1..1", {"prompt": ["a red fox", "a cat"], "seed": [1]}),
        ('p="a fox, size=large",b', {"p": ["a fox, size=large", "b"]}),
    ],
)
def test_names_and_values(tmp_path, text, grid):
    assert grid_of_text(text, tmp_path) == grid


def test_a_file_lies_in_the_folder(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.txt").write_text("one\ntwo, three\n")
    text = "p=@lists/a.txt seed=1"
    assert grid_of_text(text, tmp_path)["p"] == ["one", "two, three"]
    assert list(grid_files(text, tmp_path)) == [tmp_path / "lists" / "a.txt"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p=@../secret.txt", "leaves the folder"),
        ("p=@/etc/passwd", "leaves the folder"),
        ("p=@missing.txt", "no such file"),
        ('p="a', "a quotation mark is not closed"),
        ("1, 2 seed=1", "expected NAME=VALUES"),
        ("seed=1 seed=2", "is there twice"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        grid_of_text(text, tmp_path)


def test_a_mapping_has_a_line_a_column():
    assert mapping_of_text("prompt=3.prompt\n\n notes = \n") == {"prompt": "3.prompt", "notes": ""}
    for text in ("prompt", "=3.prompt"):
        with pytest.raises(ConfigError, match="expected NAME=NODE.INPUT"):
            mapping_of_text(text)
