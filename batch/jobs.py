"""Jobs: what one row asks for, and the name that it has wherever and whenever it is drawn.

A job's id is a hash of what determines its pictures: the nodes that they need, their values with
the row's put in, and the content of the files that these name. Which machine draws it, how models
are offloaded, and the numbers of nodes are no part of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..nodes.headless.graph import Graph, Step, WorkflowError
from ..nodes.headless.graph_check import check
from ..nodes.headless.signature import Mark, signatures
from .columns import Columns

#: Hexadecimal digits of an id.
ID_DIGITS = 24
SAVING = ("SaveImage", "PreviewImage")


@dataclass(frozen=True)
class Job:
    """One row's pictures.

    Attributes:
        line: where the row stands in its table (in a grid without one, its number).
        values: what the row sets, by ``NODE.INPUT`` with the node's number.
    """

    id: str
    line: int
    values: dict[str, Any]


def with_values(graph: Graph, values: Mapping[str, Any]) -> Graph:
    """A graph with other values; nodes that keep theirs are shared with it."""
    changed = dict(graph)
    for target, value in values.items():
        key, _, name = target.rpartition(".")
        step = changed[key]
        changed[key] = replace(step, inputs=step.inputs | {name: value})
    return changed


def saving_nodes(graph: Graph) -> list[str]:
    """Nodes whose pictures a job has: those that save, or where none does, that show.

    Raises ``WorkflowError`` where there is neither.
    """
    for kind in SAVING:
        keys = [key for key, step in graph.items() if step.type == kind]
        if keys:
            return keys
    raise WorkflowError("no node saves a picture (SaveImage or PreviewImage): there is no batch")


class JobMaker:
    """Makes jobs of rows over one graph.

    Args:
        mark: what stands for a value of a node in a job's id: a hash of the file that it names.
    """

    def __init__(self, graph: Graph, columns: Columns, mark: Mark) -> None:
        self.graph, self.columns, self.mark = graph, columns, mark
        self.saving = saving_nodes(graph)
        self.checked = False

    def job(self, line: int, cells: Mapping[str, Any], source: str) -> Job:
        """The job of a row; raises ``ColumnError`` for a column that is none, ``ValueError`` for a
        row that cannot be drawn."""
        values = {}
        for name, cell in cells.items():
            column = self.columns.find(name, source)
            if column is not None:
                values[column.target] = column.value(cell)
        return Job(self.id_of(values), line, values)

    def id_of(self, values: Mapping[str, Any]) -> str:
        graph = with_values(self.graph, values)
        if not self.checked:  # with a row's values, since the workflow's own may be of other files
            check(graph)
            self.checked = True
        names = signatures(graph, self.mark)
        text = json.dumps([names[key] for key in self.saving])
        return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def plain_mark(step: Step, name: str, value: Any) -> str:
    """A value that names no file."""
    return json.dumps(value)
