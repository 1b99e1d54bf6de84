"""A workflow as the runner has it: nodes, links, and what the known nodes say of their inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flux_core.errors import FileError

from .. import NODE_CLASS_MAPPINGS
from .stock_custom import STOCK_CUSTOM
from .stock_loaders import STOCK_LOADERS
from .stock_masks import STOCK_MASKS
from .stock_nodes import STOCK
from .stock_references import STOCK_REFERENCES
from .stock_sampling import STOCK_SAMPLING
from .stock_vision import STOCK_VISION

#: Every node that there is without the host, by the name of its class.
KNOWN_NODES: dict[str, type] = {
    **STOCK,
    **STOCK_LOADERS,
    **STOCK_SAMPLING,
    **STOCK_CUSTOM,
    **STOCK_REFERENCES,
    **STOCK_VISION,
    **STOCK_MASKS,
    **NODE_CLASS_MAPPINGS,
}
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN")


class WorkflowError(FileError):
    """A workflow cannot run; the message names the node."""


@dataclass(frozen=True)
class Link:
    """The output of another node."""

    node: str
    slot: int


@dataclass
class Step:
    """One node of a graph: its class name and what goes into each input."""

    id: str
    type: str
    inputs: dict[str, Any] = field(default_factory=dict)
    models: list[dict[str, str]] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"node {self.id} ({self.type})"


Graph = dict[str, Step]


def input_specs(node_class: type) -> dict[str, tuple[Any, dict]]:
    """Every input by name: its type (or list of choices) and options."""
    declared = node_class.INPUT_TYPES()  # type: ignore[attr-defined]
    specs = {**declared.get("required", {}), **declared.get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in specs.items()}


def required_names(node_class: type) -> set[str]:
    return set(node_class.INPUT_TYPES().get("required", {}))  # type: ignore[attr-defined]


def is_widget(kind: Any) -> bool:
    """Whether an input is a value in the node and not a wire."""
    return isinstance(kind, list | tuple) or kind in WIDGET_TYPES


#: Inputs that were called otherwise, by node; old files keep meaning what they said.
RENAMED = {"OffloadPolicy": {"clip_mode": "clip_l_mode"}}

#: Nodes that took a prefix, since the host knows one node of a name, and other packs had theirs.
PREFIXED = (
    "FluxCalibrate",
    "FluxCompare",
    "FluxControlNet",
    "FluxDataset",
    "FluxGrid",
    "FluxLoraLoader",
    "FluxMeasurePrecision",
    "FluxMemoryReport",
    "FluxMergeLoras",
    "FluxPrecisionPlan",
    "FluxResumeTraining",
    "FluxSaveQuantized",
    "FluxTrainLora",
    "FluxTrainSettings",
    "FluxTransformerLoader",
)


def input_name(type_: str, name: str) -> str:
    """What an input of a node is called now."""
    return RENAMED.get(type_, {}).get(name, name)


def node_type(name: str) -> str:
    """What a node is called now, for the name that a file has."""
    return name.replace("Flux", "FluxFit", 1) if name in PREFIXED else name
