"""What parts took in memory and time, as nodes reported it."""

from __future__ import annotations

import logging
from typing import NamedTuple

from flux_core.offload import MemoryReport

from . import host

log = logging.getLogger("fluxfit")

#: What all nodes reported since the program began; the command line prints it.
total = MemoryReport()
#: What the last run reported.
last = MemoryReport()


class Reporter(NamedTuple):
    """Who ran a part: a node of a prompt, as far as the host says."""

    prompt: str = ""
    node: str | None = None
    node_type: str = ""

    def is_in(self, prompt: host.RunningPrompt) -> bool:
        """Whether it is of a prompt, or of an earlier one that had the same node."""
        if self.node is None:
            return self.prompt == prompt.id
        return prompt.nodes.get(self.node) == self.node_type


#: Each part's last run, and who ran it.
_latest: dict[str, tuple[MemoryReport, Reporter]] = {}


def account(report: MemoryReport) -> None:
    """Add what a node reported about memory and time."""
    global last
    last = report
    total.add(report)
    reporter = reporter_now()
    for name in report.parts:
        _latest.pop(name, None)  # the order is that of the last runs
        _latest[name] = report, reporter
    log.debug("%s", report)


def reporter_now() -> Reporter:
    """The node that the host runs now."""
    prompt = host.running_prompt()
    if prompt is None:
        return Reporter()
    node = prompt.node
    return Reporter(prompt.id, node, prompt.nodes.get(node, "") if node else "")


def latest() -> MemoryReport:
    """The last run of each part of the graph that runs now; outside of the host, of every part."""
    prompt = host.running_prompt()
    result = MemoryReport()
    for name, (report, reporter) in _latest.items():
        if prompt is None or reporter.is_in(prompt):
            result.device = report.device
            result.parts[name] = report.parts[name]
    return result
