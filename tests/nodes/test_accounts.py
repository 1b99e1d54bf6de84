"""What parts took: of the graph that runs, and of no other."""

from __future__ import annotations

import pytest
from fluxfit.nodes import accounts, host

from flux_core.offload import MemoryReport
from flux_core.offload.report import PartReport


@pytest.fixture
def runs(monkeypatch):
    """Let a node of a prompt report a part."""
    monkeypatch.setattr(accounts, "_latest", {})
    now: list[host.RunningPrompt | None] = [None]
    monkeypatch.setattr(host, "running_prompt", lambda: now[0])

    def run(prompt: str, nodes: dict[str, str], node: str | None, *parts: str) -> list[str]:
        now[0] = host.RunningPrompt(prompt, nodes, node) if prompt else None
        for part in parts:
            accounts.account(MemoryReport(parts={part: PartReport()}))
        return list(accounts.latest().parts)

    return run


GRAPH = {"1": "FluxTextEncode", "2": "FluxSampler", "3": "VAEDecode"}


def test_a_cached_node_s_part_is_still_of_its_graph(runs):
    runs("a", GRAPH, "1", "text encoders")
    runs("a", GRAPH, "2", "transformer")
    assert runs("b", GRAPH | {"4": "FluxFitMemoryReport"}, "2", "transformer") == [
        "text encoders",
        "transformer",
    ]


@pytest.mark.parametrize(
    "graph", [{"1": "FluxTextEncode", "7": "FluxSampler"}, {"1": "FluxTextEncode", "2": "KSampler"}]
)
def test_parts_of_a_graph_that_is_gone_are_not_shown(graph, runs):
    runs("a", GRAPH, "1", "text encoders")
    runs("a", GRAPH, "2", "transformer", "ControlNet")
    assert runs("b", graph, "1") == ["text encoders"]


def test_where_the_host_names_no_node_a_prompt_s_own_parts_are_shown(runs):
    runs("a", GRAPH, None, "transformer", "ControlNet")
    assert runs("b", GRAPH, None, "transformer") == ["transformer"]


def test_outside_of_the_host_all_parts_are_shown(runs):
    runs("", {}, None, "text encoders")
    assert runs("", {}, None, "transformer") == ["text encoders", "transformer"]
