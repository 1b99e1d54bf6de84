"""Workflow files through the node classes without a host: read, checked whole, run."""

from .graph import KNOWN_NODES, Graph, Link, Step, WorkflowError, input_specs, is_widget
from .graph_check import check
from .page import adds_control
from .run_graph import run, saved_images
from .workflow_file import from_api, parse, read_workflow, set_value

__all__ = [
    "KNOWN_NODES",
    "Graph",
    "Link",
    "Step",
    "WorkflowError",
    "adds_control",
    "check",
    "from_api",
    "input_specs",
    "is_widget",
    "parse",
    "read_workflow",
    "run",
    "saved_images",
    "set_value",
]
