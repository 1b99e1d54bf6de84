"""Copies of what rows change: which nodes they are of, and which they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fluxfit.batch.host_known import described
from fluxfit.batch.row_graph import AGAIN, RowGraph, graph_of_rows, graph_to_draw
from fluxfit.nodes.headless import from_api

from flux_core.errors import ConfigError

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows" / "api"
#: Nodes of the shipped graph.
LOADER, PROMPT, SAMPLER, DECODE, BATCH = "2", "3", "6", "7", "9"


def shipped(name: str = "batch_table") -> dict[str, Any]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


@pytest.fixture
def graph() -> dict[str, Any]:
    return graph_to_draw(shipped(), BATCH)


def test_what_draws_is_what_comes_into_images_and_is_saved(graph):
    kinds = {key: node["class_type"] for key, node in graph.items()}
    assert kinds[BATCH] == "SaveImage" and graph[BATCH]["inputs"]["images"] == [DECODE, 0]
    assert not {"FluxFitTable", "FluxFitBatch", "PreviewImage"} & set(kinds.values())
    assert kinds.keys() == {"1", "2", "3", "4", "5", "6", "7", "9"}


def test_only_what_a_row_changes_is_copied(graph):
    rows = RowGraph(graph, BATCH, "9.")
    wire, copies = rows.add({f"{SAMPLER}.seed": 5})
    assert copies.keys() == {SAMPLER, DECODE} and wire == [copies[DECODE], 0]
    sampler = rows.copies[copies[SAMPLER]]["inputs"]
    assert sampler == graph[SAMPLER]["inputs"] | {"seed": 5}, "its wires are to the originals"
    decode = rows.copies[copies[DECODE]]["inputs"]
    assert decode == {"samples": [copies[SAMPLER], 0], "vae": [LOADER, 2]}
    assert graph[SAMPLER]["inputs"]["seed"] == 7


def test_rows_share_the_copies_that_are_the_same(graph):
    rows = RowGraph(graph, BATCH, "9.")
    _, first = rows.add({f"{PROMPT}.prompt": "a", f"{SAMPLER}.seed": 1})
    _, second = rows.add({f"{PROMPT}.prompt": "a", f"{SAMPLER}.seed": 2})
    _, third = rows.add({f"{PROMPT}.prompt": "b", f"{SAMPLER}.seed": 2})
    assert first[PROMPT] == second[PROMPT] != third[PROMPT]
    assert len({first[SAMPLER], second[SAMPLER], third[SAMPLER]}) == 3
    assert len(rows.copies) == 2 + 3 + 3


def test_a_row_that_changes_nothing_is_the_graph_itself(graph):
    rows = RowGraph(graph, BATCH, "9.")
    assert rows.add({}) == ([DECODE, 0], {}) and not rows.copies


def test_a_copy_that_failed_is_told_from_what_the_host_keeps_of_it(graph):
    _, copies = RowGraph(graph, BATCH, "9.").add({f"{SAMPLER}.seed": 1})
    again = RowGraph(graph, BATCH, "9.", faults={copies[SAMPLER]: 2})
    _, same = again.add({f"{SAMPLER}.seed": 1})
    assert same == copies
    assert again.copies[copies[SAMPLER]]["inputs"][AGAIN] == 2
    assert AGAIN not in again.copies[copies[DECODE]]["inputs"]


def test_copies_have_the_class_that_is_asked_for(graph):
    rows = RowGraph(graph, BATCH, "9.", lambda name: name + "!")
    _, copies = rows.add({f"{SAMPLER}.seed": 1})
    assert rows.copies[copies[SAMPLER]]["class_type"] == "FluxSampler!"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g[BATCH]["inputs"].pop("images"), "no wire comes into images"),
        (lambda g: g["6"]["inputs"].update(latent=[BATCH, 0]), "cycle"),
        (lambda g: g["6"]["inputs"].update(latent=["77", 0]), "node 77, which is not in the graph"),
    ],
)
def test_a_graph_that_draws_nothing_is_refused(change, message):
    prompt = shipped()
    change(prompt)
    with pytest.raises(ValueError, match=message):
        graph_to_draw(prompt, BATCH)


def test_the_command_draws_what_the_node_would():
    drawn = graph_of_rows(from_api(shipped()))
    assert [s.type for s in drawn.values()].count("SaveImage") == 1
    assert not {"FluxFitBatch", "FluxFitTable", "PreviewImage"} & {s.type for s in drawn.values()}
    plain = from_api(shipped("text_to_image"))
    assert graph_of_rows(plain) is plain
    twice = shipped()
    twice["20"] = twice[BATCH]
    with pytest.raises(ConfigError, match="nodes 9 and 20 are both FluxFitBatch"):
        graph_of_rows(from_api(twice))


class Theirs:
    """A node of another pack, with choices in the host's newer way and a type of its own."""

    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "image": ("IMAGE",),
                "way": ("COMBO", {"options": ["a", "b"]}),
                "colour": ("COLOR", {}),
                "amount": ("INT", {"default": 1, "max": 3}),
            }
        }


class StandIn:
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "way": (["a"], {"folders": ("vae",)})}}


def test_any_node_of_the_host_has_columns():
    inputs = {"image": ["1", 0], "way": "a", "colour": "#fff", "amount": 2}
    specs = described(Theirs, None, inputs).INPUT_TYPES()["optional"]  # type: ignore[attr-defined]
    assert specs["way"][0] == ["a", "b"] and specs["colour"][0] == "STRING"
    assert specs["amount"] == ("INT", {"default": 1, "max": 3}) and specs["image"][0] == "*"


def test_a_stand_in_decides_what_counts_and_the_host_what_one_may_choose():
    specs = described(Theirs, StandIn, {}).INPUT_TYPES()["optional"]  # type: ignore[attr-defined]
    assert specs.keys() == {"image", "way"}
    assert specs["way"] == (["a", "b"], {"folders": ("vae",)})
