"""What pictures that the host saves say of how they were made.

The host writes all that stands in a prompt's ``extra_pnginfo`` into the pictures that it saves. A
receipt is put there when a prompt is queued, and filled while its nodes run. Nodes that the host
does not run again, since nothing above them changed, are filled in from when they ran last: that
may be a prompt that waited before this one, so it is looked up when the prompt begins.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from flux_core.files import reason
from flux_core.receipts import KEY, Receipt, content_hash
from flux_core.record import READ, Note, subscribe

from . import host

log = logging.getLogger("fluxfit")

#: Nodes whose notes are remembered.
REMEMBERED = 2000
_remembered: OrderedDict[str, list[Note]] = OrderedDict()
#: Prompts are queued, shown and run in threads of their own.
_turn = threading.Lock()


class LiveReceipt(dict[str, Any]):
    """A receipt that is filled while its prompt runs.

    The host copies what it runs when it begins, and this stays the one that pictures are written
    with. Its values are replaced whole, so that the page may be told of them at any moment.
    """

    def __init__(self, graph: Mapping[str, Any]) -> None:
        super().__init__(Receipt.of_notes([]).to_json())
        self.known = node_hashes(graph)
        self.notes: dict[str, list[Note]] = {}
        self.fresh: set[str] = set()
        self.recall()

    def __deepcopy__(self, memo: object) -> LiveReceipt:
        self.recall()
        return self

    def recall(self) -> None:
        """Fill in nodes from when they ran last, as long as none of them has run for this."""
        with _turn:
            if self.fresh:
                return
            self.notes = {
                node: _remembered[known]
                for node, known in self.known.items()
                if known in _remembered
            }
        self.publish()

    def add(self, node: str, entry: Note) -> None:
        """Take in what a node noted."""
        with _turn:
            before = self.notes.get(node, []) if node in self.fresh else []
            self.fresh.add(node)
            self.notes = self.notes | {node: [*before, entry]}
            known = self.known.get(node)
            if known is not None:
                _remembered[known] = self.notes[node]
                _remembered.move_to_end(known)
                while len(_remembered) > REMEMBERED:
                    _remembered.popitem(last=False)
        self.publish()

    def publish(self) -> None:
        """Say it as it is written; files are hashed here, while others may go on."""
        notes = self.notes
        noted = [{"node": node} | entry for node in notes for entry in notes[node]]
        about = Receipt.of_notes(noted).to_json()
        with _turn:
            if notes is self.notes:  # else another thread has more to say
                self["did"], self["files"] = about.get("did", []), about.get("files", {})


def node_hashes(graph: Mapping[str, Any]) -> dict[str, str]:
    """A hash of each node of an API prompt with all above it, for those that have no circle."""
    hashes: dict[str, str] = {}
    missing = dict.fromkeys(graph)
    while missing:
        ready = [key for key in missing if above(graph[key], graph) <= hashes.keys()]
        if not ready:
            break
        for key in ready:
            inputs = {
                name: [hashes[str(value[0])], value[1]] if is_wire(value, graph) else value
                for name, value in graph[key].get("inputs", {}).items()
            }
            text = json.dumps([key, graph[key].get("class_type"), inputs], default=repr)
            hashes[key] = hashlib.sha256(text.encode()).hexdigest()
            del missing[key]
    return hashes


def above(node: Mapping[str, Any], graph: Mapping[str, Any]) -> set[str]:
    """The nodes that one reads."""
    return {str(value[0]) for value in node.get("inputs", {}).values() if is_wire(value, graph)}


def is_wire(value: Any, graph: Mapping[str, Any]) -> bool:
    """Whether an input is a wire; a pair of other things is a value."""
    return isinstance(value, list) and len(value) == 2 and str(value[0]) in graph


def on_prompt(data: dict[str, Any]) -> dict[str, Any]:
    """Called by the host with what the page queues, which it gives back with a receipt in it."""
    graph = data.get("prompt")
    if not isinstance(graph, dict) or not isinstance(data.get("extra_data", {}), dict):
        return data
    extra = data.setdefault("extra_data", {})
    if not isinstance(extra.get("extra_pnginfo"), dict):
        extra["extra_pnginfo"] = {}
    try:
        extra["extra_pnginfo"][KEY] = LiveReceipt(graph)
    except Exception as error:  # a picture without a receipt is better than none
        log.warning("pictures of this prompt have no receipt: %s", reason(error))
    return data


def on_note(entry: Note) -> None:
    """Take what was noted into the receipt of the prompt that runs."""
    if entry["kind"] == READ:
        # while the model is used for the first time, so that nobody waits for it afterwards
        path = entry["model"].path
        threading.Thread(target=hash_early, args=(path,), daemon=True).start()
        return
    prompt = host.running_prompt()
    receipt = None if prompt is None else (prompt.extra.get("extra_pnginfo") or {}).get(KEY)
    if prompt is None or prompt.node is None or not isinstance(receipt, LiveReceipt):
        return
    try:
        receipt.add(prompt.node, entry)
    except Exception as error:
        log.warning("the picture's receipt is not whole: %s", reason(error))


def hash_early(path: Any) -> None:
    """Hash a file, so that its hash is known when it is asked for."""
    try:
        content_hash(path)
    except (ValueError, OSError) as error:  # whoever needs it will say so
        log.debug("%s is not hashed: %s", path, reason(error))


def register() -> None:
    """Let the host's pictures carry receipts; outside of it nothing happens."""
    server = host.page_server()
    if not hasattr(server, "add_on_prompt_handler"):
        return
    server.add_on_prompt_handler(on_prompt)
    subscribe(on_note)
