"""FluxFitTable and FluxFitBatch without a host, and nodes whose faults do not end a run."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fluxfit.nodes import NODE_CLASS_MAPPINGS, guard, headless, host_execution
from fluxfit.nodes.headless import WorkflowError

from flux_core.record import note

ROOT = Path(__file__).resolve().parents[2]
TABLE = NODE_CLASS_MAPPINGS["FluxFitTable"]


def graph(**batch: Any) -> headless.Graph:
    """The shipped graph, as quick as it can be."""
    data = json.loads((ROOT / "workflows" / "api" / "batch_table.json").read_text())
    data["5"]["inputs"] |= {"width": 64, "height": 64}
    data["6"]["inputs"]["steps"] = 1
    data["9"]["inputs"] |= batch
    return headless.from_api(data)


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()[1:]]


class TestTable:
    def test_the_shipped_table_and_those_of_the_input_folder_are_listed(
        self, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "input" / "mine").mkdir(parents=True)
        (tmp_path / "input" / "mine" / "a.JSONL").write_text("{}")
        (tmp_path / "input" / "notes.txt").write_text("no table")
        choices = TABLE.INPUT_TYPES()["required"]["table"][0]
        assert choices == ["mine/a.JSONL", "shapes.csv", "(none)"]

    def test_it_says_its_columns_and_what_the_grid_makes_of_them(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        rows, report = TABLE().read("shapes.csv", "6.cfg=1..3", "prompt=3.prompt")["result"]
        assert rows.mapping == {"prompt": "3.prompt"} and rows.grid == {"6.cfg": [1, 2, 3]}
        assert report.splitlines() == [
            "shapes.csv: columns prompt, seed",
            "6.cfg: 3 values: 1, 2, 3",
            "3 pictures of every row",
        ]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (("../a.csv", "", ""), "leaves the folder"),
            (("b.csv", "", ""), "no table 'b.csv'"),
            (("(none)", "", ""), "neither a table nor a grid"),
        ],
    )
    def test_what_is_none_is_refused(self, tmp_path, monkeypatch, values, message):
        monkeypatch.chdir(tmp_path)
        with pytest.raises((ValueError, OSError), match=message):
            TABLE().read(*values)

    def test_a_file_that_was_written_again_is_another_table(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "input").mkdir()
        for name in ("a.csv", "p.txt"):
            (tmp_path / "input" / name).write_text("seed\n1\n")
        asked = ("a.csv", "3.prompt=@p.txt", "")
        marks = [TABLE.IS_CHANGED(*asked), TABLE.IS_CHANGED(*asked)]
        for name in ("a.csv", "p.txt"):
            (tmp_path / "input" / name).write_text("seed\n1\n22\n")
            marks.append(TABLE.IS_CHANGED(*asked))
        assert marks[0] == marks[1] and len(set(marks)) == 3


class TestBatchWithoutAHost:
    def test_every_row_is_drawn_once_and_the_graph_itself_is_not(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        ran: list[str] = []
        results = headless.run(graph(folder="six"), lambda step: ran.append(step.id))
        assert ran == ["8", "9", "10"], "what only rows need runs for rows"
        images, grid, report = results["9"]
        assert images.shape == (6, 64, 64, 3) and grid.shape[-1] == 3
        assert report.startswith("6 of 6 jobs are done")
        folder = tmp_path / "output" / "six"
        before = manifest(folder)
        assert len({entry["job"] for entry in before}) == 6
        assert (folder / "index.html").is_file() and (folder / "grid.png").is_file()
        headless.run(graph(folder="six"))
        assert manifest(folder) == before
        assert len(torch.unique(images.reshape(6, -1), dim=0)) == 6

    def test_a_column_that_is_none_is_told_by_name(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        data = graph(folder="wrong")
        data["8"].inputs["mapping"] = "prompt=3.promt"
        with pytest.raises(WorkflowError, match=r"node 9 .*column 'prompt'.*'3.prompt' comes near"):
            headless.run(data)

    def test_a_folder_elsewhere_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(WorkflowError, match="leaves the folder"):
            headless.run(graph(folder="../outside"))

    def test_what_the_folder_holds_says_whether_to_look_again(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        changed = NODE_CLASS_MAPPINGS["FluxFitBatch"].IS_CHANGED
        marks = [changed(folder="a", rows=1)]
        folder = tmp_path / "output" / "a" / "pictures" / "ab"
        folder.mkdir(parents=True)
        marks.append(changed(folder="a", rows=1))
        (folder.parents[1] / "manifest.jsonl").write_text("{}\n")
        marks.append(changed(folder="a", rows=1))
        assert len(set(marks)) == 3 and marks[-1] == changed(folder="a", rows=1)


class Plain:
    RETURN_TYPES, FUNCTION = ("IMAGE", "MASK"), "run"

    def run(self, value: int) -> tuple[int, int]:
        note("test", value=value)
        if value < 0:
            raise ValueError("it is below nothing")
        return value, value


class Waiting(Plain):
    async def run(self, value: int) -> tuple[int, int]:  # type: ignore[override]
        return super().run(value)


class Modern:
    """As the host's newer nodes are: class methods."""

    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def define_schema(cls) -> None:
        """A schema."""

    @classmethod
    def execute(cls, value: int) -> tuple[int]:
        if value < 0:
            raise ValueError("it is below nothing")
        return (value,)


class TestGuard:
    @pytest.fixture
    def classes(self, monkeypatch):
        known = {"Plain": Plain, "Waiting": Waiting, "Modern": Modern}
        monkeypatch.setattr(host_execution, "node_classes", lambda: known)
        monkeypatch.setattr(host_execution, "blocker", lambda: "blocked")
        monkeypatch.setattr(host_execution, "executing_node", lambda: "9.0.0.ab")
        return known

    def test_a_fault_is_told_and_blocks_what_comes_after(self, classes):
        ran: list = []
        guarded_class = classes[guard.guarded("Plain", lambda *told_of: ran.append(told_of))]
        assert issubclass(guarded_class, Plain) and guarded_class.FUNCTION != Plain.FUNCTION
        node = guarded_class()
        assert getattr(node, guarded_class.FUNCTION)(value=3) == (3, 3)
        assert getattr(node, guarded_class.FUNCTION)(value=-1) == ("blocked", "blocked")
        (_, notes, nothing), (name, _, fault) = ran
        assert notes == [{"kind": "test", "value": 3}] and nothing is None
        assert name == "9.0.0.ab" and str(fault) == "it is below nothing"

    def test_nodes_of_both_kinds_and_those_that_wait_are_guarded(self, classes):
        ran: list = []
        waiting = classes[guard.guarded("Waiting", lambda *told_of: ran.append(told_of))]
        run = getattr(waiting(), waiting.FUNCTION)
        assert asyncio.run(run(value=1)) == (1, 1)
        assert asyncio.run(run(value=-1)) == ("blocked", "blocked")
        modern = classes[guard.guarded("Modern", lambda *told_of: ran.append(told_of))]
        assert modern.execute(value=2) == (2,) and modern.execute(value=-2) == ("blocked",)
        assert [fault is not None for _, _, fault in ran] == [False, True, False, True]

    def test_a_class_is_made_once_and_anew_when_its_pack_was_loaded_again(self, classes):
        name = guard.guarded("Plain", print)
        guarded_class = classes[name]
        assert guard.guarded("Plain", print) == name and classes[name] is guarded_class
        classes["Plain"] = type("Plain", (Plain,), {})
        guard.guarded("Plain", print)
        assert classes[name] is not guarded_class and issubclass(classes[name], classes["Plain"])

    def test_an_interrupt_passes(self, classes, monkeypatch):
        class StoppedError(Exception):
            pass

        def raise_again(fault: Exception) -> None:
            if isinstance(fault, StoppedError):
                raise fault

        class Stopped(Plain):
            def run(self, value: int) -> tuple[int, int]:
                raise StoppedError

        monkeypatch.setattr(host_execution, "after_fault", raise_again)
        classes["Stopped"] = Stopped
        guarded_class = classes[guard.guarded("Stopped", print)]
        with pytest.raises(StoppedError):
            getattr(guarded_class(), guarded_class.FUNCTION)(value=1)
