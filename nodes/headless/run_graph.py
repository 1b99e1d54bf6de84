"""Running checked graphs, one node after another and one graph after another.

What a node gave is used again in the next graph where the node and all above it are as they were,
so that a row of graphs opens a model and reads a prompt once. Nodes keep their objects by number,
as in the host: a loader that is asked for another LoRA holds what it opened else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from flux_core.receipts import KEY, Receipt, pixels_hash, saved_pixels
from flux_core.record import Note, recording

from .graph import KNOWN_NODES, Graph, Link, Step, WorkflowError, input_specs
from .graph_check import awake, check, is_output, left_out, ordered_from
from .signature import by_stamp, signatures
from .workflow_file import to_api

log = logging.getLogger("fluxfit")

OnNode = Callable[[Step], None]
#: Nodes whose pictures are a graph's own; those of the second where there is none of the first.
SAVING, SHOWING = "SaveImage", "PreviewImage"


@dataclass(frozen=True)
class Ran:
    """What a node gave, and what was noted meanwhile."""

    values: Any
    notes: Sequence[Note] = ()


@dataclass(frozen=True)
class SavedPicture:
    """A picture that a graph saves: uint8 ``pixels`` (H, W, 3), the texts that go into its file,
    and which of ``count`` pictures of a node it is."""

    node: str
    index: int
    count: int
    pixels: np.ndarray
    receipt: Receipt
    prompt: Mapping[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, str]:
        """The texts of its PNG file."""
        graph = {"prompt": json.dumps(self.prompt)} if self.prompt else {}
        return graph | {KEY: str(self.receipt)}


def run(graph: Graph, on_node: OnNode | None = None) -> dict[str, Any]:
    """Run one graph; as ``GraphRunner.run`` has it."""
    return GraphRunner().run(graph, on_node)


class GraphRunner:
    """Runs graphs, and keeps what the last one's nodes gave; what is ``private`` saves no graph."""

    def __init__(self, private: bool = False) -> None:
        self.private = private
        self.kept: dict[str, Ran] = {}
        self.nodes: dict[tuple[str, str], Any] = {}
        #: What nodes of the last graph said of themselves beside what they gave, by number.
        self.shown: dict[str, Any] = {}

    def run(self, graph: Graph, on_node: OnNode | None = None) -> dict[str, Any]:
        """Run what the graph's outputs need; returns each node's outputs (for output nodes what
        they show) by its number.

        What a node refuses is a ``WorkflowError`` that names the node.
        """
        order = check(graph)
        for step in left_out(graph, order):
            log.warning("%s runs in ComfyUI alone, and nothing here needs it: left out", step.label)
        ran = self._run(graph, awake(graph, order), on_node)
        return {key: each.values for key, each in ran.items()}

    def images(
        self, graph: Graph, on_node: OnNode | None = None, savers: Sequence[str] | None = None
    ) -> list[SavedPicture]:
        """The pictures that a graph's SaveImage nodes would save, or its PreviewImage nodes where
        it has none, or those of the nodes ``savers``; nothing is written. Errors as ``run`` has
        them."""
        savers = saving_nodes(graph) if savers is None else savers
        order = [key for key in check(graph, savers) if key not in savers]
        ran = self._run(graph, order, on_node)
        pictures = []
        for node in savers:
            wire = graph[node].inputs["images"]
            images = ran[wire.node].values[wire.slot]
            receipt = receipt_of(graph, node, ran)
            for index, image in enumerate(images):
                pixels = saved_pixels(image)
                mine = receipt.of_picture(pixels_hash(pixels), node, index, len(images))
                prompt = {} if self.private else to_api(graph)
                pictures.append(SavedPicture(node, index, len(images), pixels, mine, prompt))
        return pictures

    def _run(self, graph: Graph, order: Sequence[str], on_node: OnNode | None) -> dict[str, Ran]:
        """What some nodes gave, by their numbers; nodes that end in an output always run."""
        known = signatures(graph, order, by_stamp, everything=True)
        wanted = set(known.values())
        for signature in [signature for signature in self.kept if signature not in wanted]:
            del self.kept[signature]  # before anything else is opened
        present = {(key, graph[key].type) for key in order}
        for gone in [key for key in self.nodes if key not in present]:
            del self.nodes[gone]
        self.shown = {}
        results: dict[str, Ran] = {}
        with torch.inference_mode():  # as the host does
            for key in order:
                step, signature = graph[key], known[key]
                ran = None if is_output(step) else self.kept.get(signature)
                if ran is None:
                    if on_node is not None:
                        on_node(step)
                    ran = self._run_node(graph, step, results)
                results[key] = ran
                if not is_output(step):
                    self.kept[signature] = ran
        return results

    def _run_node(self, graph: Graph, step: Step, results: Mapping[str, Ran]) -> Ran:
        """Run one node, whose inputs are there."""
        node_class = KNOWN_NODES[step.type]
        specs = input_specs(node_class)
        kwargs = {
            name: results[value.node].values[value.slot] if isinstance(value, Link) else value
            for name, value in step.inputs.items()
            if name in specs and not specs[name][1].get("lazy")
        }
        kwargs |= hidden_inputs(node_class, graph, step.id, results, self.private)
        node = self.nodes.setdefault((step.id, step.type), node_class())
        with recording() as notes:
            try:
                given = getattr(node, node_class.FUNCTION)(**kwargs)  # type: ignore[attr-defined]
            except ValueError as error:
                raise WorkflowError(f"{step.label}: {error}") from error
        values = given.get("result", given) if isinstance(given, dict) else given
        if values is not given:
            self.shown[step.id] = given.get("ui", {})
        return Ran(values, [{"node": step.id} | entry for entry in notes])


def saving_nodes(graph: Graph) -> list[str]:
    """The nodes whose pictures are the graph's; raises ``WorkflowError`` where there is none."""
    for wanted in (SAVING, SHOWING):
        nodes = [key for key, step in graph.items() if step.type == wanted]
        if nodes:
            return nodes
    raise WorkflowError(f"no node saves a picture ({SAVING} or {SHOWING})")


def hidden_inputs(
    node_class: type, graph: Graph, key: str, results: Mapping[str, Ran], private: bool
) -> dict[str, Any]:
    """What a node asks for that no wire brings: of the host's hidden inputs, the prompt, the node's
    own number, and what goes into pictures beside the prompt."""
    hidden = node_class.INPUT_TYPES().get("hidden", {})  # type: ignore[attr-defined]
    given = {}
    for name, kind in hidden.items():
        if kind == "PROMPT" and private and graph[key].type not in (SAVING, SHOWING):
            other = "fluxfit batch --private does not"
            raise WorkflowError(f"{graph[key].label}: puts its graph into pictures; {other}")
        if kind == "PROMPT" and not private:
            given[name] = to_api(graph)
        elif kind == "UNIQUE_ID":
            given[name] = key
        elif kind == "EXTRA_PNGINFO":
            given[name] = {KEY: receipt_of(graph, key, results).to_json()}
    return given


def receipt_of(graph: Graph, node: str, results: Mapping[str, Ran]) -> Receipt:
    """What was done for one node, by all above it."""
    above = [key for key in ordered_from(graph, [node]) if key in results]
    return Receipt.of_notes([entry for key in above for entry in results[key].notes])


def saved_images(results: dict[str, Any]) -> list[str]:
    """Paths that the output nodes wrote."""
    shown = [r["ui"]["images"] for r in results.values() if isinstance(r, dict) and "ui" in r]
    return [path for images in shown for path in images]
