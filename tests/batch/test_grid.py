"""Grids: ranges, lists, lines of a file, and what is none of these."""

from __future__ import annotations

import pytest
from fluxfit.batch.grid import combinations, read_grid, size

from flux_core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1..4", [1, 2, 3, 4]),
        ("4..1", [4, 3, 2, 1]),
        ("0..100..25", [0, 25, 50, 75, 100]),
        ("0.1..0.5..0.1", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("1..2..0.5,7", [1.0, 1.5, 2.0, "7"]),
        ("euler, heun", ["euler", "heun"]),
        ('"a heart, red",b', ["a heart, red", "b"]),
        ("1...", ["1..."]),
        ("-2..0", [-2, -1, 0]),
    ],
)
def test_values(text, values):
    assert read_grid([f"name={text}"]) == {"name": values}


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a heart, red\n\n  b\n")
    assert read_grid([f"prompt=@{path}"]) == {"prompt": ["a heart, red", "  b"]}


def test_every_value_stands_with_every_other():
    grid = read_grid(["seed=1..3", "sampler=euler,heun"])
    cells = list(combinations(grid))
    assert size(grid) == len(cells) == 6
    assert cells[:2] == [{"seed": 1, "sampler": "euler"}, {"seed": 1, "sampler": "heun"}]
    assert list(combinations({})) == [{}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed"], "--grid 'seed': expected NAME=VALUES"),
        (["seed=1", "seed=2"], "'seed' is there twice"),
        (["seed=1..9..0"], "never comes to 9"),
        (["seed=1..9..-1"], "never comes to 9"),
        (["seed=1..99999999999"], "more than 1000000 values"),
        (["seed=1..99999", "steps=1..99999"], "combinations, expected at most"),
        (['prompt="a'], "unexpected end"),
        (["prompt=@nowhere.txt"], "nowhere.txt: no such file"),
        (["prompt="], "no value"),
    ],
)
def test_what_is_no_grid_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        read_grid(arguments)
