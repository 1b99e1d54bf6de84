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

from ..nodes.headless import Graph, Link, WorkflowError, check, saving_nodes, signatures
from ..nodes.headless.graph_check import default_of, links_of, ordered_from
from ..nodes.headless.signature import FileValue, Mark, by_content, specs_of, step_signature
from .columns import Column, Columns

#: Hexadecimal digits of an id.
ID_DIGITS = 24
#: Files whose hashes are remembered; the cache on disk knows the others.
MOST_FILES = 10_000


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


class JobMaker:
    """Makes jobs of rows over one graph.

    Args:
        mark: what stands for a file in a job's id: by default a hash of its content.

    Raises ``WorkflowError`` where the graph saves no picture.
    """

    def __init__(self, graph: Graph, columns: Columns, mark: Mark = by_content) -> None:
        self.graph, self.columns = graph, columns
        self.saving = saving_nodes(graph)
        self.mark = remembered(mark)
        #: Columns whose value in the workflow cannot be used, and why: each row has to set them.
        self.needed: dict[str, str] = {}
        self.checked: set[str] = set()
        self.ids: dict[frozenset[str], IdMaker] = {}

    def job(self, line: int, cells: Mapping[str, Any], source: str) -> Job:
        """The job of a row.

        Raises ``ColumnError`` for a column that is none, ``BrokenGraphError`` for what no row can
        mend, ``ValueError`` or ``OSError`` where this row cannot be drawn.
        """
        values = {}
        for name, cell in cells.items():
            column = self.columns.find(name, source)
            if column is not None:
                values[column.target] = column.value(cell)
        if len(self.columns.by_name) != len(self.checked):
            self.check_graph()
        for target, problem in self.needed.items():
            if target not in values:
                raise ValueError(problem)
        return Job(self.id_of(values), line, values)

    def check_graph(self) -> None:
        """Check the workflow but for the values that rows set; raises ``BrokenGraphError``."""
        self.checked = set(self.columns.by_name)
        usable = {}
        for column in self.columns:
            problem = unusable(column)
            if problem:
                self.needed[column.target] = problem
                usable[column.target] = default_of(column.kind, column.options)
        graph = with_values(self.graph, usable)
        try:
            check(graph, self.saving)
        except WorkflowError as fault:
            raise BrokenGraphError(str(fault)) from fault
        self.graph, self.ids = graph, {}

    def id_of(self, values: Mapping[str, Any]) -> str:
        """The id of a row's job by its checked values."""
        changed = frozenset(target.rpartition(".")[0] for target in values)
        maker = self.ids.get(changed)
        if maker is None:
            maker = self.ids[changed] = IdMaker(self.graph, self.saving, changed, self.mark)
        return maker.id_of(values)


class BrokenGraphError(WorkflowError):
    """The workflow cannot be drawn, whatever a row says."""


class IdMaker:
    """Ids of jobs that set values of the same nodes: what these do not reach is hashed once."""

    def __init__(
        self, graph: Graph, saving: list[str], changed: frozenset[str], mark: Mark
    ) -> None:
        self.graph, self.saving, self.mark = graph, saving, mark
        reached = set(changed)
        self.below: list[str] = []
        for key in ordered_from(graph, saving):  # each after what it needs
            if key in reached or any(link.node in reached for _, link in links_of(graph[key])):
                reached.add(key)
                self.below.append(key)
        kept = [key for key in ordered_from(graph, saving) if key not in reached]
        self.kept = signatures(graph, kept, mark)
        self.specs = {key: specs_of(graph[key].type) for key in self.below}

    def id_of(self, values: Mapping[str, Any]) -> str:
        graph, names = with_values(self.graph, values), dict(self.kept)
        for key in self.below:
            names[key] = step_signature(graph[key], self.specs[key], names, self.mark)
        text = json.dumps([names[key] for key in self.saving])
        return hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]


def unusable(column: Column) -> str:
    """What is wrong with the value that the workflow itself has; empty where nothing is."""
    value = column.step.inputs.get(column.input)
    if value is None or isinstance(value, Link):
        return ""
    try:
        column.value(value)
    except ValueError as fault:
        return f"the row leaves {column.name!r} empty, and in the workflow {fault}"
    return ""


def remembered(mark: Mark) -> Mark:
    """A mark that looks at a file once: it stays as it is while rows are read."""
    known: dict[tuple[str, tuple[str, ...]], str] = {}

    def marked(file: FileValue) -> str:
        key = file.value, file.folders
        if key not in known:
            if len(known) >= MOST_FILES:
                known.clear()
            known[key] = mark(file)
        return known[key]

    return marked
