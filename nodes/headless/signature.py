"""What tells nodes of one graph from those of another: a hash of a node and of all above it.

    signature(node) = hash(class, {input: value, or signature and slot that its wire comes from})

Two nodes of one signature give the same values, whatever their numbers are. Files are told by what
``mark`` says of them, so that a file that was changed under its name is another one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flux_core.files import files_of_model
from flux_core.models.prompt import EMBEDDING
from flux_core.receipts import content_hash
from flux_core.record import stamp_of

from .. import host
from ..precision import plan_path
from ..wires import OFFLOAD_POLICY
from .graph import KNOWN_NODES, Graph, Link, Step, WorkflowError, input_specs
from .graph_check import ordered_from
from .stock_nodes import annotated

#: Inputs that say under which name a picture is saved.
NAMING = ("filename_prefix",)
#: The only thing of an offload policy that decides bits: one that names devices draws each picture
#: of a batch by itself, however many devices there are.
DEVICES, BY_ITSELF, AT_ONCE = "devices", "each picture by itself", ""
EMBEDDING_NAMES = re.compile(re.escape(EMBEDDING) + r"([^\s,:()]+)")

#: What stands for a value in a signature.
Mark = Callable[["FileValue"], str]
Specs = Mapping[str, tuple[Any, dict]]
encode_json = json.JSONEncoder(sort_keys=True, default=repr).encode


@dataclass(frozen=True)
class FileValue:
    """An input that names a file, which decides what is drawn with it."""

    step: Step
    name: str
    value: str
    #: Model folders that it is looked for in; none for a picture of the input folder.
    folders: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where it lies; raises ``WorkflowError`` naming the node and what is missing."""
        try:
            return find_file(self.value, self.folders)
        except (ValueError, OSError) as error:
            raise WorkflowError(f"{self.step.label}: {self.name!r}: {error}") from error


def find_file(value: str, folders: tuple[str, ...]) -> Path:
    """The file of a name; raises ``ValueError`` or ``FileNotFoundError``."""
    if folders == (host.PLANS,):
        return plan_path(value)
    if folders:
        return host.model_path(value, *folders)
    path = host.inside(host.input_folder(), annotated(value))
    if not path.is_file():
        raise FileNotFoundError(f"no picture {value!r} in {host.input_folder().resolve()}")
    return path


def specs_of(type_: str, known: Mapping[str, type] = KNOWN_NODES) -> Specs:
    """Inputs of a kind of node, none where it is unknown here."""
    return input_specs(known[type_]) if type_ in known else {}


def file_values(graph: Graph, nodes: Sequence[str] | None = None) -> Iterator[FileValue]:
    """Every input of some nodes, by default of all, that names a model's file or a picture."""
    specs: dict[str, Specs] = {}
    for key in graph if nodes is None else nodes:
        step = graph[key]
        if step.type not in specs:
            specs[step.type] = specs_of(step.type)
        for name in step.inputs:
            yield from files_of(step, name, specs[step.type])


def files_of(step: Step, name: str, specs: Specs) -> Iterator[FileValue]:
    """The files that one input names."""
    value = step.inputs[name]
    if not isinstance(value, str) or name not in specs:
        return
    kind, options = specs[name]
    folders = tuple(options.get("folders", ()))
    if folders:
        if value.endswith((*host.SUFFIXES, ".json")):
            yield FileValue(step, name, value, folders)
    elif options.get("image_upload"):
        yield FileValue(step, name, value, ())
    elif kind == "STRING" and EMBEDDING in value:
        for named in EMBEDDING_NAMES.findall(value):
            yield from embedding_of(step, name, named)


def embedding_of(step: Step, name: str, value: str) -> Iterator[FileValue]:
    """The file of an embedding that a prompt names; none where there is no such file."""
    for ending in ("", *host.SUFFIXES):
        if host.file_below("embeddings", Path(value + ending)) is not None:
            yield FileValue(step, name, value + ending, ("embeddings",))
            return


def by_content(file: FileValue) -> str:
    """A file told by its content."""
    return content_hash(file.path)


def by_stamp(file: FileValue) -> str:
    """A file, or all files of a model, told by place, size and time."""
    about = [(str(path), stamp_of(path)) for path in files_of_model(file.path)]
    return encode_json(about)


def signatures(
    graph: Graph, nodes: Sequence[str], mark: Mark = by_content, everything: bool = False
) -> dict[str, str]:
    """The signature of some nodes and of all above them, by the nodes' ids.

    Where memory is, and under which name a picture is saved, changes no picture and counts only
    with ``everything``; of a policy it counts whether it names devices. Raises ``WorkflowError``
    for a file that is missing.
    """
    result: dict[str, str] = {}
    specs: dict[str, Specs] = {}
    for key in ordered_from(graph, nodes):
        step = graph[key]
        if step.type not in specs:
            specs[step.type] = specs_of(step.type)
        result[key] = step_signature(step, specs[step.type], result, mark, everything)
    return result


def step_signature(
    step: Step, specs: Specs, above: Mapping[str, str], mark: Mark, everything: bool = False
) -> str:
    """The signature of one node, from those of all that its wires come from."""
    if not everything and OFFLOAD_POLICY in getattr(KNOWN_NODES.get(step.type), "RETURN_TYPES", ()):
        return BY_ITSELF if str(step.inputs.get(DEVICES, "")).strip() else AT_ONCE
    about: dict[str, Any] = {}
    for name, value in step.inputs.items():
        if counts(name, value, specs, above, everything):
            about[name] = value_mark(step, name, value, specs, above, mark)
    text = encode_json([step.type, about])
    return hashlib.sha256(text.encode()).hexdigest()


def counts(name: str, value: Any, specs: Specs, above: Mapping[str, str], everything: bool) -> bool:
    """Whether an input decides what comes out."""
    if not specs:  # of a node that is unknown here everything does
        return True
    if name not in specs:
        return False
    if everything or specs[name][0] != OFFLOAD_POLICY:
        return everything or name not in NAMING
    return isinstance(value, Link) and above[value.node] != AT_ONCE


def value_mark(
    step: Step, name: str, value: Any, specs: Specs, above: Mapping[str, str], mark: Mark
) -> Any:
    """A value as a signature has it."""
    if isinstance(value, Link):
        return {"from": above[value.node], "slot": value.slot}
    files = list(files_of(step, name, specs))
    if not files:
        return value
    marks = [mark(file) for file in files]
    # an embedding's name stands in a text, which counts too
    return {"files": marks} if files[0].value == value else {"files": marks, "text": value}
