"""A batch in a real host: rows as copies of nodes, going on, failed rows, one folder for both."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fluxfit.batch.draw import Drawer
from fluxfit.batch.grid import read_grid
from fluxfit.batch.row_graph import graph_to_draw
from fluxfit.batch.run import Batch, BatchSettings, LocalWorker, Summary, run_batch
from fluxfit.batch.table import open_table
from fluxfit.nodes import headless
from PIL import Image

from tests.host.prompts import api, key_of, version
from tests.host_server import ROOT, RunError, Server, running_server

#: Nodes that refuse a number, in both of the host's ways to write one.
FUSSY = """\
from comfy_api.latest import io

class FussyPlain:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "look", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",), "number": ("INT", {"default": 0})}}
    def look(self, image, number):
        if number == 13:
            raise RuntimeError("13 is refused")
        return (image,)

class FussyModern(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        inputs = [io.Image.Input("image"), io.Int.Input("number", default=0)]
        return io.Schema("FussyModern", category="test", inputs=inputs, outputs=[io.Image.Output()])
    @classmethod
    def execute(cls, image, number):
        if number == 13:
            raise RuntimeError("13 is refused")
        return io.NodeOutput(image)

NODE_CLASS_MAPPINGS = {"FussyPlain": FussyPlain, "FussyModern": FussyModern}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A host that has the nodes above too."""
    base = tmp_path_factory.mktemp("comfyui")
    with running_server(base, packs={"fussy": FUSSY}) as started:
        yield started


def batch_prompt(folder: str, **values: Any) -> dict[str, Any]:
    """The shipped graph, with one step a row and small pictures."""
    prompt = api("batch_table")
    prompt[key_of(prompt, "FluxSampler")]["inputs"]["steps"] = 1
    prompt[key_of(prompt, "EmptySD3LatentImage")]["inputs"] |= {"width": 64, "height": 64}
    prompt[key_of(prompt, "FluxFitBatch")]["inputs"] |= {"folder": folder} | values
    return prompt


def with_fussy(prompt: dict[str, Any], kind: str) -> dict[str, Any]:
    """A graph over a grid of numbers, one of which a node refuses."""
    batch = prompt[key_of(prompt, "FluxFitBatch")]["inputs"]
    prompt["50"] = {"class_type": kind, "inputs": {"image": batch["images"], "number": 0}}
    batch["images"] = ["50", 0]
    table = prompt[key_of(prompt, "FluxFitTable")]["inputs"]
    table |= {"table": "(none)", "grid": "50.number=12..15", "mapping": ""}
    return prompt


def report(entry: dict[str, Any]) -> str:
    """What the batch's node said, whichever of its parts did."""
    texts = [out["text"] for out in entry["outputs"].values() if "text" in out]
    return "\n".join(str(text) for parts in texts for text in parts)


def manifest(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def by_the_driver(prompt: dict[str, Any], folder: Path, limit: int | None = None) -> Summary:
    """The same batch as ``fluxfit batch`` has it, of a graph that saves where the node stands."""
    graph = graph_to_draw(prompt, key_of(prompt, "FluxFitBatch"))
    table = open_table(ROOT / "assets" / "tables" / "shapes.csv")
    mapping = {"prompt": f"{key_of(prompt, 'FluxTextEncode')}.prompt"}
    batch = Batch(headless.from_api(graph), table, read_grid([]), mapping, folder)
    return run_batch(batch, BatchSettings(limit=limit), lambda: LocalWorker(Drawer(graph)))


def test_a_table_is_drawn_some_rows_a_run_until_nothing_is_left(server: Server):
    folder = server.base / "output" / "tables" / "some"
    prompt = batch_prompt("tables/some", rows=4)
    prompt["60"] = {"class_type": "PreviewImage", "inputs": {"images": ["9", 0]}}
    first = server.run(prompt)
    assert "4 of 6 jobs are done" in report(first) and "2 are left" in report(first)
    assert len(first["outputs"]["60"]["images"]) == 4, "a list of pictures goes on"
    opened = server.opened()
    second = server.run(prompt)
    assert "6 of 6 jobs are done" in report(second) and "left" not in report(second)
    assert len(second["outputs"]["60"]["images"]) == 2
    assert server.opened() == opened, "the model is opened once"
    before = manifest(folder)
    assert len(before) == len({entry["job"] for entry in before}) == 6
    assert {entry["worker"] for entry in before} == {"ComfyUI"}
    third = server.run(prompt)
    assert len(third["outputs"]["60"]["images"]) == 4, "of what is there already"
    server.run(prompt)
    assert manifest(folder) == before
    assert (folder / "index.html").is_file() and (folder / "results.csv").is_file()


def test_what_one_began_the_other_goes_on_with(server: Server):
    folder = server.base / "output" / "both"
    prompt = batch_prompt("both", rows=2)
    server.run(prompt)
    summary = by_the_driver(prompt, folder, limit=2)
    assert (summary.jobs, summary.drawn, summary.done) == (6, 2, 4)
    server.run(prompt)
    assert by_the_driver(prompt, folder).drawn == 0
    entries = manifest(folder)
    assert len({entry["job"] for entry in entries}) == len(entries) == 6
    assert [entry["worker"] for entry in entries] == ["ComfyUI"] * 2 + ["local"] * 2 + [
        "ComfyUI"
    ] * 2
    assert all(entry["values"].keys() == {"prompt", "seed"} for entry in entries)


def test_a_picture_has_its_row_s_graph_and_its_receipt(server: Server):
    prompt = batch_prompt("receipts", rows=3)
    server.run(prompt)
    folder = server.base / "output" / "receipts"
    entry = manifest(folder)[2]
    with Image.open(folder / entry["files"][0]) as picture:
        texts = dict(picture.text)  # type: ignore[attr-defined]
    receipt, graph = json.loads(texts["fluxfit"]), json.loads(texts["prompt"])
    assert graph["6"]["inputs"]["seed"] == entry["values"]["seed"] == 3
    assert graph["3"]["inputs"]["prompt"] == entry["values"]["prompt"]
    assert receipt["job"] == {
        "id": entry["job"],
        "values": {"3.prompt": entry["values"]["prompt"], "6.seed": 3},
    }
    assert receipt["pixels"] == entry["pixels"][0]
    did = {(fact["node"], fact["kind"]) for fact in receipt["did"]}
    assert {("6", "draw"), ("7", "decode")} <= did and ("3", "encode") in did
    assert next(f for f in receipt["did"] if f["kind"] == "draw")["seed"] == 3
    assert "fluxfit_pocket.safetensors" in receipt["files"]


@pytest.mark.parametrize("kind", ["FussyPlain", "FussyModern"])
def test_a_row_that_fails_does_not_stop_the_others(kind: str, server: Server):
    folder = server.base / "output" / kind
    prompt = with_fussy(batch_prompt(kind), kind)
    first = report(server.run(prompt))
    assert "3 of 4 jobs are done" in first and "failed: RuntimeError: 13 is refused" in first
    assert "1 is left: queue again" in first, "it is tried once more"
    report(server.run(prompt))
    last = report(server.run(prompt))
    assert "3 of 4 jobs are done" in last and "1 failed, not tried again" in last
    failed = [entry for entry in manifest(folder) if "error" in entry]
    assert [(e["values"], e["tries"]) for e in failed] == [({"50.number": 13}, n) for n in (1, 2)]
    assert len(manifest(folder)) == 5


def test_an_interrupt_leaves_a_batch_that_goes_on(server: Server):
    folder = server.base / "output" / "interrupted"
    prompt = batch_prompt("interrupted")
    prompt[key_of(prompt, "FluxSampler")]["inputs"]["steps"] = 4

    def interrupt() -> None:
        while not (folder / "manifest.jsonl").exists() or len(manifest(folder)) < 2:
            time.sleep(0.02)
        request = urllib.request.Request(f"{server.address}/interrupt", b"", method="POST")
        urllib.request.urlopen(request, timeout=30).close()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(RunError, match="interrupted"):
        server.run(prompt)
    thread.join()
    assert 2 <= len(manifest(folder)) < 6
    assert "6 of 6 jobs are done" in report(server.run(prompt))
    entries = manifest(folder)
    assert len({entry["job"] for entry in entries}) == len(entries) == 6


def test_names_that_leave_the_folders_are_refused(server: Server):
    for name, value in {"folder": "../elsewhere", "grid": "6.seed=@../../secret.txt"}.items():
        prompt = batch_prompt("refused")
        node = "FluxFitBatch" if name == "folder" else "FluxFitTable"
        prompt[key_of(prompt, node)]["inputs"][name] = value
        with pytest.raises(RunError, match="leaves the folder"):
            server.run(prompt)
    assert not (server.base / "elsewhere").exists()


@pytest.mark.parametrize("flags", [("--cache-none",), ("--cache-lru", "3")])
def test_it_does_not_matter_what_the_host_keeps(flags: tuple[str, ...], tmp_path: Path):
    with running_server(tmp_path, *flags, packs={"fussy": FUSSY}) as started:
        if flags == ("--cache-none",) and version(started) < (0, 21):
            pytest.skip("no node may put others in its place in such a host that keeps nothing")
        for kind in ("FussyPlain", "FussyModern"):
            prompt = with_fussy(batch_prompt(kind, rows=3), kind)
            assert "2 of 4 jobs are done" in report(started.run(prompt))
            assert "3 of 4 jobs are done" in report(started.run(prompt))
            started.run(prompt)
            entries = manifest(tmp_path / "output" / kind)
            assert [entry.get("tries") for entry in entries if "error" in entry] == [1, 2]
            assert len({entry["job"] for entry in entries if "files" in entry}) == 3
