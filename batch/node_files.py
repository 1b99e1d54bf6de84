"""Models and pictures that a job reads, by name and content: what the driver has, every node needs.

The driver notes the hash of every file; a worker finds files of the same names on its own node, and
draws only where their content is the same.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from flux_core.receipts import content_hash

from ..nodes.headless import Graph, file_values
from .jobs import Job, with_values

#: Digits of a hash that a person needs to see.
SHOWN = 12


class NodeFileError(ValueError):
    """A node lacks a file, or has another of its name; the message names both."""


class NodeFiles:
    """The files that jobs of one graph name.

    Hashes are kept by value: a file that changes while a batch is drawn is not noticed.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.known: dict[str, dict[str, list[str]]] = {}
        self.checked: set[tuple[str, str, str]] = set()

    def expected(self, job: Job) -> dict[str, list[str]]:
        """Names and hashes of a job's files here, by ``NODE.INPUT``.

        Raises ``FileNotFoundError`` or ``ValueError`` for one that is not here.
        """
        found = {}
        for file in file_values(with_values(self.graph, job.values)):
            found[f"{file.step.id}.{file.name}"] = [str(file.value), content_hash(file.path)]
        return found

    def check(self, job: Job, expected: Mapping[str, Any]) -> None:
        """Raise ``NodeFileError`` where a file is not here, or is another one."""
        wanted = {(key, name, digest) for key, (name, digest) in expected.items()}
        if wanted <= self.checked:
            return
        node = f"node {socket.gethostname()}"
        try:
            found = self.expected(job)
        except (OSError, ValueError) as fault:
            names = ", ".join(f"{n} ({digest[:SHOWN]}…)" for _, n, digest in sorted(wanted))
            raise NodeFileError(f"{node}: {fault}; the driver has {names}") from fault
        for key, name, digest in sorted(wanted):
            here = found.get(key, ["", "none"])[1]
            if here != digest:
                raise NodeFileError(
                    f"{node}: {name!r} ({key}) is another file than the driver's: "
                    f"SHA-256 {here[:SHOWN]}…, expected {digest[:SHOWN]}…"
                )
        self.checked |= wanted
