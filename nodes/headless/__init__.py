"""Workflow files through the node classes without a host: read, checked whole, run."""

from .graph import KNOWN_NODES, Graph, Link, Step, WorkflowError, input_specs, is_widget
from .graph_check import check
from .page import adds_control
from .run_graph import GraphRunner, SavedPicture, run, saved_images, saving_nodes
from .signature import FileValue, by_content, file_values, signatures
from .workflow_file import from_api, parse, read_workflow, set_value, to_api

__all__ = [
    "KNOWN_NODES",
    "FileValue",
    "Graph",
    "GraphRunner",
    "Link",
    "SavedPicture",
    "Step",
    "WorkflowError",
    "adds_control",
    "by_content",
    "check",
    "file_values",
    "from_api",
    "input_specs",
    "is_widget",
    "parse",
    "read_workflow",
    "run",
    "saved_images",
    "saving_nodes",
    "set_value",
    "signatures",
    "to_api",
]
