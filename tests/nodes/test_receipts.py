"""Receipts of the host's pictures: put in when a prompt is queued, filled while it runs."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
from fluxfit.nodes import host, receipts

from flux_core.receipts import KEY, Receipt
from flux_core.record import READ, ReadFrom

GRAPH = {
    "1": {"class_type": "FluxLoaderFP8", "inputs": {"transformer": "a.safetensors"}},
    "2": {"class_type": "FluxSampler", "inputs": {"model": ["1", 0], "seed": 1}},
    "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "a"}},
}


class Host:
    """As much of the host as queues prompts and runs their nodes, one at a time."""

    def __init__(self) -> None:
        self.running = {}
        self.node = None
        self.prompt_queue = SimpleNamespace(currently_running=self.running)

    @property
    def last_node_id(self) -> str | None:
        return self.node

    def queue(self, graph: dict, **data: object) -> dict:
        """What SaveImage writes beside the prompt."""
        return self.begin(receipts.on_prompt({"prompt": copy.deepcopy(graph), **data}))

    def begin(self, queued: dict) -> dict:
        """Run what waited; a copy is what runs."""
        extra = queued["extra_data"]
        self.running[0] = copy.deepcopy((0, "id", queued["prompt"], extra, []))
        return extra["extra_pnginfo"]

    def note(self, node: str, **facts: object) -> None:
        self.node = node
        receipts.on_note(facts)


@pytest.fixture
def fake(monkeypatch) -> Host:
    fake = Host()
    monkeypatch.setattr(host, "page_server", lambda: fake)
    receipts._remembered.clear()
    return fake


def written(info: dict) -> Receipt:
    """As the host writes it."""
    return Receipt.parse(json.dumps(info[KEY]))


def test_what_nodes_note_stands_in_the_receipt(fake, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"weights")
    info = fake.queue(GRAPH, extra_data={"extra_pnginfo": {"workflow": {}}, "client_id": "x"})
    fake.note("2", kind="draw", seed=1, model=ReadFrom(file, "int8"))
    fake.note("2", kind="ran", part="transformer", seconds=1.0)
    receipt = written(info)
    assert [entry["kind"] for entry in receipt.did] == ["draw", "ran"]
    assert receipt.did[0]["node"] == "2" and "workflow" in info
    assert len(receipt.files["a.safetensors"]["sha256"]) == 64


@pytest.mark.parametrize("data", [{}, {"extra_data": {}}, {"extra_data": {"extra_pnginfo": None}}])
def test_prompts_of_programs_have_a_receipt_too(fake, data):
    info = fake.queue(GRAPH, **data)
    fake.note("2", kind="draw", seed=1)
    assert written(info).did[0]["seed"] == 1


@pytest.mark.parametrize("data", [{}, {"prompt": 3}, {"prompt": {}, "extra_data": 3}])
def test_what_is_no_prompt_passes_as_it_is(fake, data):
    assert receipts.on_prompt(dict(data)) == data


@pytest.mark.parametrize(
    "graph",
    [
        {"1": {}},
        {"1": {"inputs": {"a": ["1", 0]}}},
        {"1": {"inputs": {"a": ["2", 0]}}, "2": {"inputs": {"a": ["1", 0]}}},
        {"1": {"class_type": "X", "inputs": {"a": [[1], 2], "b": None, "c": {"d": 1}}}},
    ],
)
def test_odd_graphs_have_a_receipt_without_notes(fake, graph):
    assert not written(fake.queue(graph)).did


def test_nodes_that_do_not_run_again_are_filled_in(fake):
    fake.queue(GRAPH)
    fake.note("2", kind="draw", seed=1)
    fake.note("2", kind="ran", part="transformer")
    renamed = copy.deepcopy(GRAPH)
    renamed["3"]["inputs"]["filename_prefix"] = "b"
    assert [entry["kind"] for entry in written(fake.queue(renamed)).did] == ["draw", "ran"]
    other = copy.deepcopy(GRAPH)
    other["1"]["inputs"]["transformer"] = "b.safetensors"
    assert not written(fake.queue(other)).did


def test_nodes_that_ran_for_a_prompt_that_waited_before_are_filled_in(fake):
    renamed = copy.deepcopy(GRAPH)
    renamed["3"]["inputs"]["filename_prefix"] = "b"
    first, second = (receipts.on_prompt({"prompt": graph}) for graph in (GRAPH, renamed))
    fake.begin(first)
    fake.note("2", kind="draw", seed=1)
    assert [entry["kind"] for entry in written(fake.begin(second)).did] == ["draw"]
    fake.note("3", kind="decode")  # which the page asks for while it runs
    info = copy.deepcopy(second)["extra_data"]["extra_pnginfo"]
    assert [entry["kind"] for entry in written(info).did] == ["draw", "decode"]


def test_what_an_older_look_finds_takes_nothing_newer_back(fake, monkeypatch):
    queued = receipts.on_prompt({"prompt": GRAPH})
    info = fake.begin(queued)
    of_notes = Receipt.of_notes

    def while_hashing(notes):
        monkeypatch.setattr(Receipt, "of_notes", of_notes)
        fake.note("2", kind="draw", seed=1)
        return of_notes(notes)

    monkeypatch.setattr(Receipt, "of_notes", while_hashing)
    copy.deepcopy(queued)
    assert len(written(info).did) == 1


def test_a_node_that_runs_again_is_not_listed_twice(fake):
    fake.queue(GRAPH)
    fake.note("2", kind="draw", seed=1)
    info = fake.queue(GRAPH)
    fake.note("2", kind="draw", seed=1)
    assert len(written(info).did) == 1


def test_notes_without_a_prompt_are_nobodys(fake):
    info = fake.queue(GRAPH)
    fake.running.clear()
    fake.note("2", kind="draw", seed=1)
    assert not written(info).did


def test_a_file_that_is_gone_costs_only_its_hash(fake, tmp_path):
    info = fake.queue(GRAPH)
    gone = ReadFrom(tmp_path / "gone.safetensors")
    fake.note("1", kind=READ, model=gone)
    fake.note("2", kind="draw", seed=1, model=gone)
    assert written(info).files == {"gone.safetensors": {}}


def test_no_more_nodes_are_remembered_than_a_limit(fake, monkeypatch):
    monkeypatch.setattr(receipts, "REMEMBERED", 3)
    for seed in range(8):
        graph = copy.deepcopy(GRAPH)
        graph["2"]["inputs"]["seed"] = seed
        fake.queue(graph)
        fake.note("2", kind="draw", seed=seed)
    assert len(receipts._remembered) == 3
