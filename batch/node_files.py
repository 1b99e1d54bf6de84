"""Models and pictures that a job reads, by name and content: what the driver has, every node needs.

The driver notes the hash of every file; a worker finds files of the same names on its own node, and
draws only where their content is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flux_core.models.prompt import EMBEDDING
from flux_core.receipts import content_hash

from ..nodes.headless import FileValue, Graph, file_values, saving_nodes
from ..nodes.headless.graph_check import ordered_from
from ..nodes.headless.signature import specs_of
from .jobs import Job, with_values

#: Digits of a hash that a person needs to see.
SHOWN = 12
#: Sets of files that are remembered; a table names far fewer.
MOST_KNOWN = 10_000


class NodeFileError(ValueError):
    """A node lacks a file, or has another of its name; the message names both."""


class NeededFile(NamedTuple):
    """A file that a job reads: the input that names it, its name, its SHA-256."""

    target: str
    name: str
    digest: str


class NodeFiles:
    """The files that jobs of one graph name, on this machine.

    What was looked at is remembered: a file that changes while a batch is drawn is not noticed.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.order = ordered_from(graph, saving_nodes(graph))
        self.known: dict[frozenset[tuple[str, str]], Sequence[NeededFile]] = {}
        self.digests: dict[tuple[str, str], str] = {}
        self.checked: set[NeededFile] = set()
        self.naming = {
            f"{key}.{name}"
            for key in self.order
            for name, (_, options) in specs_of(graph[key].type).items()
            if "folders" in options or "image_upload" in options
        }

    def needed(self, job: Job) -> Sequence[NeededFile]:
        """What a job reads; raises ``WorkflowError`` or ``FileError`` for what is not here."""
        named = frozenset(
            (target, value)
            for target, value in job.values.items()
            if isinstance(value, str) and (target in self.naming or EMBEDDING in value)
        )
        if named not in self.known:
            if len(self.known) >= MOST_KNOWN:
                self.known.clear()
            graph = with_values(self.graph, job.values)
            self.known[named] = [self.look(file) for file in file_values(graph, self.order)]
        return self.known[named]

    def look(self, file: FileValue) -> NeededFile:
        """A file as it is here."""
        target = f"{file.step.id}.{file.name}"
        digest = self.digests.get((target, file.value))
        if digest is None:
            digest = self.digests[target, file.value] = content_hash(file.path)
        return NeededFile(target, file.value, digest)

    def check(self, job: Job, needed: Iterable[Sequence[str]]) -> None:
        """Raise ``NodeFileError`` where a file that the driver has is not here, or is another."""
        wanted = {NeededFile(*file) for file in needed}
        if wanted <= self.checked:
            return
        try:
            present = {(file.target, file.name): file.digest for file in self.needed(job)}
        except (OSError, ValueError) as fault:
            names = ", ".join(f"{file.name} ({file.digest[:SHOWN]}…)" for file in sorted(wanted))
            raise NodeFileError(f"{fault}; the driver has {names}") from fault
        for file in sorted(wanted):
            digest = present.get((file.target, file.name), "none")
            if digest != file.digest:
                raise NodeFileError(
                    f"{file.name} ({file.target}) is another file than the driver's: "
                    f"SHA-256 {digest[:SHOWN]}…, expected {file.digest[:SHOWN]}…"
                )
        self.checked |= wanted
