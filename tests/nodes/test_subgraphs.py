"""Subgraphs of a page, and the values that their instances show."""

from __future__ import annotations

import copy
import itertools

import pytest
from fluxfit.nodes.headless import Link, WorkflowError

from tests.nodes.pages import FIELDS, node, opened, page

__all__ = ["page"]

SUBGRAPH = "2f6c1b6e-0a57-4b7e-8a0a-000000000001"


def with_subgraph(page: dict, **instance) -> dict:
    """The page with its prompt and decoder inside of a subgraph."""
    decode, prompt = copy.deepcopy(node(page, 7)) | {"id": 1}, copy.deepcopy(node(page, 3))
    prompt = prompt | {"id": 2, "outputs": [{"name": "", "type": "CONDITIONING", "links": [15]}]}
    prompt["inputs"] = [
        {"name": "text_encoders", "type": "FLUX_TEXT_ENCODERS", "link": 12},
        {"name": "prompt", "type": "STRING", "link": 13, "widget": {"name": "prompt"}},
    ]
    decode["inputs"] = [
        {"name": "samples", "type": "LATENT", "link": 10},
        {"name": "vae", "type": "VAE", "link": 11},
    ]
    decode["outputs"] = [{"name": "IMAGE", "type": "IMAGE", "links": [14]}]
    inputs = [
        {"id": "a", "name": "samples", "type": "LATENT", "linkIds": [10]},
        {"id": "b", "name": "vae", "type": "VAE", "linkIds": [11]},
        {"id": "c", "name": "prompt", "type": "STRING", "linkIds": [13]},
        {"id": "d", "name": "text_encoders", "type": "FLUX_TEXT_ENCODERS", "linkIds": [12]},
    ]
    links = [
        (10, -10, 0, 1, 0),
        (11, -10, 1, 1, 1),
        (13, -10, 2, 2, 1),
        (12, -10, 3, 2, 0),
        (14, 1, 0, -20, 0),
        (15, 2, 0, -20, 1),
    ]
    page["definitions"] = {
        "subgraphs": [
            {
                "id": SUBGRAPH,
                "nodes": [decode, prompt],
                "inputs": inputs,
                "outputs": [
                    {"name": "IMAGE", "type": "IMAGE", "linkIds": [14]},
                    {"name": "CONDITIONING", "type": "CONDITIONING", "linkIds": [15]},
                ],
                "links": [dict(zip(FIELDS, (*link, "X"), strict=True)) for link in links],
            }
        ]
    }
    old_decode, old_prompt = node(page, 7), node(page, 3)
    wires = {slot["name"]: slot["link"] for slot in old_decode["inputs"] + old_prompt["inputs"]}
    kinds = {"samples": "LATENT", "vae": "VAE", "text_encoders": "FLUX_TEXT_ENCODERS"}
    old_decode |= {
        "type": SUBGRAPH,
        "inputs": [{"name": n, "type": kind, "link": wires[n]} for n, kind in kinds.items()],
        "outputs": [{"name": "IMAGE", "type": "IMAGE"}, {"name": "C", "type": "CONDITIONING"}],
        "widgets_values": [],
    } | instance
    for link in page["links"]:
        if link[1] == 3:
            link[1:3] = [7, 1]
    page["nodes"].remove(old_prompt)
    return page


class TestSubgraphs:
    def test_its_inside_stands_in_the_place_of_an_instance(self, page):
        plain = opened(page)
        graph = opened(with_subgraph(page))
        assert "7" not in graph and graph["8"].inputs["images"] == Link("7:1", 0)
        assert graph["6"].inputs["positive"] == Link("7:2", 0)
        assert graph["7:1"].inputs == plain["7"].inputs
        assert graph["7:2"].inputs == plain["3"].inputs

    @pytest.mark.parametrize(
        "instance",
        [
            {"widgets_values": ["a shown prompt"]},
            {
                "widgets_values": ["a shown prompt"],
                "properties": {"proxyWidgets": [["2", "prompt"]]},
            },
            {
                "widgets_values": ["a shown prompt", 2.0],
                "properties": {"proxyWidgets": [["-1", "prompt"], ["2", "guidance"]]},
            },
            {
                "widgets_values": ["a shown prompt"],
                "properties": {"proxyWidgets": [["2", "guidance"], ["-1", "prompt"]]},
            },
            {
                "widgets_values": ["a shown prompt", None],
                "properties": {"proxyWidgets": [["-1", "prompt"], ["2", "guidance"]]},
            },
            {
                "widgets_values": ["a shown prompt", 2.0],
                "properties": {"proxyWidgets": [["2", "prompt"], ["2", "guidance"]]},
            },
        ],
    )
    def test_an_instances_own_values_count(self, page, instance):
        graph = opened(with_subgraph(page, **instance))
        assert graph["7:2"].inputs["prompt"] == "a shown prompt"
        own = node(page, 7)["widgets_values"]
        inner = 3.5  # as the node inside has it
        assert graph["7:2"].inputs["guidance"] == (inner if own[1:] in ([], [None]) else own[1])

    def test_a_subgraph_in_a_subgraph(self, page):
        page = with_subgraph(page)
        inner = page["definitions"]["subgraphs"][0]
        outer = copy.deepcopy(inner) | {"id": "outer"}
        instance = copy.deepcopy(node(page, 7)) | {"id": 5}
        for slot, number in zip(instance["inputs"], (10, 11, 12), strict=True):
            slot["link"] = number
        outer["nodes"] = [instance]
        pairs = [(10, -10, 0, 5, 0), (11, -10, 1, 5, 1), (12, -10, 3, 5, 2)]
        ends = [(14, 5, 0, -20, 0), (15, 5, 1, -20, 1)]
        outer["links"] = [dict(zip(FIELDS, (*x, "X"), strict=True)) for x in pairs + ends]
        page["definitions"]["subgraphs"].append(outer)
        node(page, 7)["type"] = "outer"
        graph = opened(page)
        assert graph["8"].inputs["images"] == Link("7:5:1", 0)
        assert graph["7:5:1"].inputs["samples"] == Link("6", 0)

    def test_an_instance_may_be_bypassed_or_muted(self, page):
        page = with_subgraph(page, mode=2)
        with pytest.raises(WorkflowError, match="no value or wire for"):
            opened(page)
        node(page, 7)["mode"] = 4
        with pytest.raises(WorkflowError, match="no value or wire for"):
            opened(page)  # nothing of the picture's type comes in

    def test_one_that_holds_itself_is_refused(self, page):
        page = with_subgraph(page)
        page["definitions"]["subgraphs"][0]["nodes"][1]["type"] = SUBGRAPH
        with pytest.raises(WorkflowError, match="holds itself"):
            opened(page)

    @pytest.mark.parametrize("width, depth, leaf", [(10, 12, "Note"), (2, 30, "empty")])
    def test_many_in_each_other_have_an_end(self, page, width, depth, leaf):
        kinds = [f"s{i}" for i in range(depth)] + [leaf]
        page["definitions"] = {
            "subgraphs": [
                {"id": kind, "nodes": [{"id": n, "type": inner} for n in range(width)]}
                for kind, inner in itertools.pairwise(kinds)
            ]
            + [{"id": "empty", "nodes": []}]
        }
        page["nodes"].append({"id": 99, "type": "s0"})
        with pytest.raises(WorkflowError, match="more than 20000 nodes"):
            opened(page)
