"""What a node that puts others in its place needs of the host's execution.

Outside of the host there are no classes of it, and nothing is blocked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import host


def node_classes() -> dict[str, Any]:
    """The host's own registry of nodes by name, to look into and to add to; empty outside."""
    nodes = host.comfy("nodes")
    return {} if nodes is None else nodes.NODE_CLASS_MAPPINGS


def add_node_classes(classes: Mapping[str, type]) -> None:
    """Let the host run nodes that no list offers."""
    known = node_classes()
    for name, node_class in classes.items():
        known.setdefault(name, node_class)


def blocker() -> Any:
    """A value with which the host runs no node, without a word; None outside of it."""
    utils = host.comfy("comfy_execution.graph_utils")
    return None if utils is None else utils.ExecutionBlocker(None)


def executing_node() -> str:
    """The id of the node that runs now, a copy's too."""
    return host.executing_node() or ""


def after_fault(fault: Exception) -> None:
    """What the host does about a fault: an interrupt is raised again, and where memory ran out
    every model is unloaded."""
    management = host.comfy("comfy.model_management")
    if management is None:
        return
    if isinstance(fault, management.InterruptProcessingException):
        raise fault
    is_oom = getattr(management, "is_oom", None)
    exhausted = is_oom(fault) if is_oom else isinstance(fault, MemoryError | out_of_memory())
    if exhausted:
        management.unload_all_models()


def out_of_memory() -> type[Exception]:
    import torch

    return torch.cuda.OutOfMemoryError


def show_progress(node: str, done: int, total: int) -> None:
    """A bar on a node that is not the one that runs."""
    utils = host.comfy("comfy.utils")
    if utils is not None:
        utils.ProgressBar(total, node_id=node).update_absolute(done, total)


def shown_file(path: Path) -> dict[str, str]:
    """A file of the output folder as the page asks for it."""
    root = host.output_folder().resolve()
    folder = path.resolve().parent.relative_to(root).as_posix()
    return {"filename": path.name, "subfolder": folder, "type": "output"}
