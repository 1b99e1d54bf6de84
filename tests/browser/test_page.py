"""The shipped workflows in ComfyUI's page: they open, look in order, run and come back."""

from __future__ import annotations

import ast
import base64
import itertools
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser.editor import Editor
from tests.host_server import ROOT, Server

WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}
#: Those that need files which nobody has at first.
NEED_FILES = {name for name in WORKFLOWS if name.startswith(("flux1_", "flux2_", "chroma_"))}
SAMPLER = "FluxSampler"


def workflow(name: str) -> dict[str, Any]:
    return json.loads(WORKFLOWS[name].read_text())


def files_of(graph: dict[str, Any]) -> set[str]:
    """Model files that the nodes of a graph name."""
    values = [value for node in graph["nodes"] for value in node.get("widgets_values") or ()]
    return {v for v in values if isinstance(v, str) and v.endswith((".safetensors", ".gguf"))}


def models_of(graph: dict[str, Any]) -> set[str]:
    """Those of which a graph says where to get them."""
    models = [node["properties"].get("models", ()) for node in graph["nodes"]]
    return {model["name"] for some in models for model in some}


def node_ids() -> list[str]:
    """Our nodes, read from the source: the tests' own interpreter may have no torch."""
    tree = ast.parse((ROOT / "nodes" / "__init__.py").read_text("utf-8"))
    for item in tree.body:
        if isinstance(item, ast.AnnAssign) and getattr(item.target, "id", "") == "NODES":
            assert isinstance(item.value, ast.Dict)
            return [key.id for key in item.value.keys if isinstance(key, ast.Name)]
    raise AssertionError("nodes/__init__.py has no NODES")


def overlapping(nodes: list[dict[str, Any]]) -> list[str]:
    """Pairs of nodes, title bars included, that lie on each other."""
    return [
        f"{a['type']} {a['id']} and {b['type']} {b['id']}"
        for a, b in itertools.combinations(nodes, 2)
        if a["x"] < b["x"] + b["width"]
        and b["x"] < a["x"] + a["width"]
        and a["y"] < b["y"] + b["height"]
        and b["y"] < a["y"] + a["height"]
    ]


def too_small(nodes: list[dict[str, Any]]) -> list[str]:
    """Nodes that do not show all that is on them."""
    return [
        f"{node['type']} {node['id']}"
        for node in nodes
        if node["width"] < node["needs"][0] or node["height"] - 30 < node["needs"][1]
    ]


def pixels(path: Path) -> tuple[tuple[int, int], bytes]:
    with Image.open(path) as picture:
        return picture.size, picture.convert("RGB").tobytes()


def values(editor: Editor) -> list[tuple[int, str, Any]]:
    return sorted((node["id"], node["type"], node["values"]) for node in editor.nodes())


class TestOpening:
    @pytest.mark.parametrize("name", WORKFLOWS)
    def test_a_workflow_opens_without_a_complaint(self, name: str, editor: Editor) -> None:
        editor.load(workflow(name))
        editor.screenshot(name)
        assert [node["type"] for node in editor.nodes() if not node["known"]] == []
        assert len(editor.nodes()) == len(workflow(name)["nodes"])
        assert len(editor.links()) == len(workflow(name)["links"])
        if name in NEED_FILES:
            alerts = editor.alerts()  # pages of several years say it in their own words
            assert re.search("models are missing|errors found|Missing Models", alerts)
            files = files_of(workflow(name))
            counted = re.search(rf"\b{len(files)} errors\b", alerts, re.IGNORECASE)
            assert counted or all(model in alerts for model in models_of(workflow(name)))
        else:
            assert editor.alerts() == ""
        assert editor.errors == [] and editor.failed == []

    def test_a_missing_node_would_be_told(self, editor: Editor) -> None:
        broken = workflow("text_to_image")
        next(n for n in broken["nodes"] if n["type"] == SAMPLER)["type"] = "FluxNoSuchNode"
        editor.load(broken)
        assert re.search(
            "nodes are missing|Missing node: FluxNoSuchNode|FluxNoSuchNode\n", editor.alerts()
        )
        assert [n["type"] for n in editor.nodes() if not n["known"]] == ["FluxNoSuchNode"]

    @pytest.mark.parametrize("name", WORKFLOWS)
    def test_a_graph_reads_from_left_to_right(self, name: str, editor: Editor) -> None:
        editor.load(workflow(name))
        nodes = editor.nodes()
        assert overlapping(nodes) == []
        assert too_small(nodes) == []
        by_id = {node["id"]: node for node in nodes}
        backwards = [
            f"{by_id[a]['type']} {a} to {by_id[b]['type']} {b}"
            for a, b in editor.links()
            if by_id[a]["x"] + by_id[a]["width"] >= by_id[b]["x"]
        ]
        assert backwards == []

    @pytest.mark.parametrize("name", WORKFLOWS)
    def test_no_wire_is_behind_a_node(self, name: str, editor: Editor) -> None:
        editor.load(workflow(name))
        assert editor.hidden_wires() == []


class TestRunning:
    def test_a_picture_is_drawn_shown_and_comes_back(self, editor: Editor) -> None:
        editor.load(workflow("text_to_image"))
        before, sizes = values(editor), {n["id"]: n["height"] for n in editor.nodes()}
        entry = editor.finish(editor.queue())
        assert entry["status"]["status_str"] == "success"
        (saved,) = editor.server.pictures(entry)
        editor.wait_for_preview("SaveImage")
        editor.screenshot("text_to_image_after_a_run")
        assert saved.name in editor.node("SaveImage")["pictures"][0]
        assert {n["id"]: n["height"] for n in editor.nodes()} == sizes  # previews have their room
        assert too_small(editor.nodes()) == []
        assert editor.alerts() == "" and editor.errors == [] and editor.failed == []

        editor.clear()
        editor.drop(base64.b64encode(saved.read_bytes()).decode(), saved.name)
        editor.screenshot("text_to_image_dropped")
        assert values(editor) == before
        assert editor.alerts() == "" and editor.errors == []

    def test_an_interrupt_leaves_a_graph_that_runs(self, editor: Editor) -> None:
        editor.load(workflow("text_to_image"))
        editor.set_value(SAMPLER, "seed", 21)
        steps = dict(editor.node(SAMPLER)["values"])["steps"]
        (first,) = editor.server.pictures(editor.finish(editor.queue()))
        editor.load(workflow("text_to_image"))  # shows no pictures yet
        editor.set_value(SAMPLER, "seed", 22)
        editor.set_value(SAMPLER, "steps", 1000)
        prompt = editor.queue()
        editor.wait_for_preview(SAMPLER)
        editor.interrupt()
        stopped = editor.finish(prompt)
        assert "execution_interrupted" in [kind for kind, _ in stopped["status"]["messages"]]
        editor.screenshot("text_to_image_interrupted")

        editor.forget()  # or newer hosts would show the first picture again
        editor.set_value(SAMPLER, "seed", 21)
        editor.set_value(SAMPLER, "steps", steps)
        entry = editor.finish(editor.queue())
        cached = next(d["nodes"] for k, d in entry["status"]["messages"] if k == "execution_cached")
        assert str(editor.node(SAMPLER)["id"]) not in cached
        (second,) = editor.server.pictures(entry)
        assert pixels(first) == pixels(second)
        assert editor.errors == []


def shown(editor: Editor, node_type: str) -> str:
    """What stands in the text below a node."""
    return editor.page.evaluate(
        """type => app.graph.nodes.find(node => node.type === type).widgets
            .find(widget => widget.fluxfit)?.element.textContent ?? ''""",
        node_type,
    )


def wait_for_text(editor: Editor, node_type: str, words: str) -> str:
    """The text below a node once it has some words."""
    editor.page.wait_for_function(
        """([type, words]) => app.graph.nodes.find(node => node.type === type).widgets
            .find(widget => widget.fluxfit)?.element.textContent.includes(words)""",
        arg=[node_type, words],
        timeout=120_000,
    )
    return shown(editor, node_type)


class TestWhatNodesShow:
    def test_the_plan_follows_the_policy_and_the_model(self, editor: Editor) -> None:
        editor.load(workflow("text_to_image"))
        first = wait_for_text(editor, "OffloadPolicy", "blocks stay")
        assert first.startswith("fluxfit_pocket in ")
        editor.screenshot("live_plan")
        editor.set_value("OffloadPolicy", "mode", "none")
        editor.set_value("OffloadPolicy", "vram_budget", 0.001)
        wait_for_text(editor, "OffloadPolicy", "does not fit")
        editor.screenshot("live_plan_too_small")
        editor.set_value("OffloadPolicy", "vram_budget", 0.0)
        editor.set_value("FluxLoaderFP8", "transformer_precision", "bf16")
        wait_for_text(editor, "OffloadPolicy", "fluxfit_pocket in bf16")
        editor.load(workflow("text_to_image"))
        assert wait_for_text(editor, "OffloadPolicy", "blocks stay") == first
        assert editor.errors == [] and editor.failed == []

    def test_the_plan_counts_what_is_wired(self, editor: Editor) -> None:
        for name, counted in (
            ("regions", "counted: 2 regions"),
            ("hires_fix", "counted: cfg, tiles of "),
        ):
            editor.load(workflow(name))
            wait_for_text(editor, "OffloadPolicy", counted)
        assert editor.errors == [] and editor.failed == []

    def test_a_file_that_is_missing_is_said(self, editor: Editor) -> None:
        editor.load(workflow("flux1_dev_fp8_offload"))
        wait_for_text(editor, "OffloadPolicy", "no file 'flux1-dev.safetensors'")
        editor.errors.clear()

    def test_the_sampler_says_what_it_took(self, editor: Editor) -> None:
        editor.load(workflow("text_to_image"))
        editor.set_value(SAMPLER, "seed", 31)
        editor.finish(editor.queue())
        assert "s a step" in wait_for_text(editor, SAMPLER, "predicted")
        editor.screenshot("sampler_result")

    def test_a_batch_says_how_far_it_is_and_shows_its_rows(self, editor: Editor) -> None:
        editor.load(workflow("batch_table"))
        editor.set_value(SAMPLER, "steps", 2)
        editor.set_value("FluxFitBatch", "folder", "page")
        editor.set_value("FluxFitBatch", "rows", 4)
        entry = editor.finish(editor.queue())
        assert entry["status"]["status_str"] == "success"
        text = wait_for_text(editor, "FluxFitBatch", "jobs are done")
        assert "4 of 6 jobs are done" in text and "2 are left: queue again" in text
        assert "shapes.csv: columns prompt, seed" in shown(editor, "FluxFitTable")
        editor.wait_for_preview("PreviewImage")
        editor.screenshot("batch_result")
        assert overlapping(editor.nodes()) == [] and too_small(editor.nodes()) == []
        editor.finish(editor.queue())
        wait_for_text(editor, "FluxFitBatch", "6 of 6 jobs are done")
        assert editor.alerts() == "" and editor.errors == [] and editor.failed == []

    def test_training_says_how_far_it_is(self, editor: Editor) -> None:
        editor.load(workflow("train_lora"))
        editor.set_value("FluxFitTrainSettings", "batch", 1)
        editor.set_value("FluxFitTrainLora", "sample_every", 0)
        prompt = editor.queue()
        wait_for_text(editor, "FluxFitTrainLora", "loss")
        text = shown(editor, "FluxFitTrainLora")
        assert "of 600" in text and editor.server.get(f"/history/{prompt}") == {}
        wait_for_text(editor, "FluxFitDataset", "pictures")
        assert overlapping(editor.nodes()) == [] and too_small(editor.nodes()) == []
        editor.screenshot("training")
        editor.interrupt()
        editor.finish(prompt)
        assert "of 600" in editor.server.log.read_text()
        assert editor.errors == [] and editor.failed == []


class TestHelp:
    def test_the_host_lists_these_nodes(self, server: Server) -> None:
        info = server.get("/object_info")
        ours = {k for k, v in info.items() if v["python_module"] == "custom_nodes.FluxFit"}
        assert ours == set(node_ids())

    @pytest.mark.parametrize("language", ["en", "zh"])
    def test_it_opens_beside_the_graph_with_its_picture(
        self, language: str, editor: Editor
    ) -> None:
        editor.set_language(language)
        try:
            for name in node_ids():
                editor.clear()
                editor.add(name)
                picture = editor.help_picture(name)
                if picture is None:
                    pytest.skip("this page has no button for help beside a node")
                address, width = picture
                assert address.endswith(f"/docs/images/{name}.png") and width > 0
                # what is in English lies where the page looks second
                assert [url for url in editor.failed if not url.endswith("/en.md")] == []
        finally:
            editor.set_language("en")

    @pytest.mark.parametrize("name", node_ids())
    def test_a_node_has_a_page_of_help(self, name: str, server: Server) -> None:
        address = f"{server.address}/extensions/FluxFit/docs/{name}.md"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                text = answer.read().decode()
        except urllib.error.HTTPError as error:
            pytest.fail(f"{error.code} {address}")
        assert text.lstrip().startswith("#")
