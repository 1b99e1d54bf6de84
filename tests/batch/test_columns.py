"""What columns are called, what their cells may hold, and what changing one costs."""

from __future__ import annotations

import json

import pytest
from fluxfit.batch.columns import (
    MODELS,
    PICTURES,
    PROMPTS,
    WEIGHTS,
    ColumnError,
    Columns,
    read_mapping,
)
from fluxfit.nodes.headless import from_api

from flux_core.errors import ConfigError

from .fake_batch import api_graph


def columns(mapping=None, name="text_to_image"):
    return Columns(from_api(api_graph(name)), mapping or {})


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("seed", "6.seed"),
        ("6.seed", "6.seed"),
        ("FluxSampler.seed", "6.seed"),
        ("3.prompt", "3.prompt"),
        ("what", "4.prompt"),
        ("clip_l_mode", "1.clip_l_mode"),
        ("OffloadPolicy.clip_mode", "1.clip_l_mode"),
    ],
)
def test_names(name, target):
    assert columns({"what": "4.prompt"}).find(name, "t.csv").target == target


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sede", "t.csv: column 'sede' is no input of the workflow: 'seed' comes nearest"),
        ("6.sed", "t.csv: column '6.sed' is no input of the workflow: '6.seed' comes nearest"),
        ("FluxSampler.model", "is no input of the workflow"),
        ("prompt", r"input of 2 nodes: 3.prompt \(FluxTextEncode\), 4.prompt .*--map prompt=3"),
        ("FluxTextEncode.prompt", "input of 2 nodes"),
        ("other", r"t.csv: column 'other' \(6.nothing\) is no input"),
    ],
)
def test_what_is_no_column_is_told_with_the_nearest(name, message):
    with pytest.raises(ColumnError, match=message):
        columns({"other": "6.nothing"}).find(name, "t.csv")


def test_two_columns_for_one_input_are_refused():
    both = columns()
    both.find("seed", "t.csv")
    with pytest.raises(ColumnError, match="'seed' and '6.seed' both set 'seed' of node 6"):
        both.find("6.seed", "t.csv")


@pytest.mark.parametrize(
    ("mapping", "known", "message"),
    [
        ({"unused": "99.nope"}, ["unused"], r"'unused' \(99.nope\) is no input of the workflow$"),
        ({"unused": "99.nope"}, None, "is no input of the workflow$"),
        ({"promt": "3.prompt"}, ["prompt"], "promt=3.prompt: no column of that name in t.csv"),
        ({"note": ""}, ["prompt"], "note=: no column of that name in t.csv"),
    ],
)
def test_a_mapping_to_or_from_nowhere_is_refused(mapping, known, message):
    with pytest.raises(ColumnError, match=message):
        columns(mapping).check_mapping(known, "t.csv")


@pytest.mark.parametrize(("name", "mapping"), [("id", {}), ("notes", {"note": ""})])
def test_what_is_not_near_or_left_out_is_not_offered(name, mapping):
    with pytest.raises(ColumnError, match="is no input of the workflow$"):
        columns(mapping).find(name, "t.csv")


def test_a_column_that_is_mapped_to_nothing_is_left_out():
    assert columns({"note": ""}).find("note", "t.csv") is None


@pytest.mark.parametrize(
    ("name", "cell", "value"),
    [
        ("seed", "7", 7),
        ("seed", 7.0, 7),
        ("cfg", "2.5", 2.5),
        ("cfg", 3, 3.0),
        ("sampler", "heun", "heun"),
        ("compile", "true", True),
        ("compile", False, False),
        ("3.prompt", 5, "5"),
        ("3.prompt", "", ""),
    ],
)
def test_cells(name, cell, value):
    taken = columns().find(name, "t.csv").value(cell)
    assert taken == value and type(taken) is type(value)


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("seed", "x", "'seed' is 'x', expected INT"),
        ("seed", 7.5, "'seed' is 7.5, expected a whole number"),
        ("seed", True, "'seed' is True, expected INT"),
        ("seed", "-1", "expected 0 to"),
        ("steps", [1], r"'steps' is \[1\], expected INT"),
        ("sampler", "oiler", "'sampler' is 'oiler', expected one of euler"),
        ("width", "100", "expected a multiple of 16"),
        ("cfg", "nan", "expected a number"),
        ("3.prompt", 1_000_001 * "x", "longer than 1000000 letters"),
    ],
)
def test_cells_that_are_refused(name, cell, message):
    with pytest.raises(ValueError, match=message):
        columns().find(name, "t.csv").value(cell)


@pytest.mark.parametrize(
    ("workflow", "name", "rank"),
    [
        ("text_to_image", "transformer", WEIGHTS),
        ("text_to_image", "3.prompt", PROMPTS),
        ("text_to_image", "seed", PICTURES),
        ("text_to_image", "width", PICTURES),
        ("flux1_dev_lora", "FluxFitLoraLoader.strength", MODELS),
    ],
)
def test_what_a_change_costs(workflow, name, rank):
    assert columns(name=workflow).find(name, "t.csv").rank == rank


def test_mappings(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"what": "4.prompt", "note": ""}))
    assert read_mapping([str(path), "a = 6.seed"]) == {
        "what": "4.prompt",
        "note": "",
        "a": "6.seed",
    }
    for again in (["a=6.seed", "a="], [str(path), "what=3.prompt"], ["a=6.seed", "a=6.seed"]):
        with pytest.raises(ConfigError, match="'(a|what)' is there twice"):
            read_mapping(again)
    path.write_text("[1]")
    with pytest.raises(ConfigError, match="expected an object"):
        read_mapping([str(path)])
