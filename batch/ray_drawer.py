"""What a worker on a Ray cluster does once it has FluxFit: check its node, draw, write.

A picture is written where the driver would write it, if the worker sees the driver's folder; else
its bytes go back. What is said to the driver are plain values, whatever version it has.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import flux_core
from flux_core.errors import one_line
from flux_core.files import reason, writing

from . import ray_actor
from .draw import Drawer, picture_path
from .jobs import Job
from .node_files import NodeFileError, NodeFiles
from .workers import attempt

#: A file in the driver's folder that says it is the same folder.
TOKEN = ".shared"
#: What can be wrong with a node: its installation, its models, its disk.
SETUP, FILES, DISK = "setup", "files", "disk"
PACKAGE = Path(__file__).resolve().parents[1]
#: This module, as a worker imports it.
DRAWING = f"{ray_actor.PACKAGE}.batch.ray_drawer"


def sources_digest() -> str:
    """A hash of the code that draws; equal for a folder and for what was installed from it."""
    digest = hashlib.sha256()
    folders = {"flux_core": Path(flux_core.__file__).parent, "nodes": PACKAGE / "nodes"}
    for name, folder in (folders | {"batch": PACKAGE / "batch"}).items():
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{name}/{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def task_for(
    graph: Mapping[str, Any], out: Path, *, private: bool, threads: int, token: str
) -> dict[str, Any]:
    """What a worker needs to know before its first job, as the driver has it."""
    return {
        "folder": str(PACKAGE),
        "core_parent": str(Path(flux_core.__file__).resolve().parents[1]),
        "version": flux_core.__version__,
        "sources": sources_digest(),
        "graph": dict(graph),
        "private": private,
        "threads": threads,
        "out": str(out.resolve()),
        "token": token,
        "working_folder": os.getcwd(),
        "models": os.environ.get("FLUXFIT_MODELS", ""),
    }


def open_drawer(task: Mapping[str, Any]) -> tuple[NodeDrawer | None, dict[str, Any]]:
    """Who draws on this node, and facts about it: ``unfit`` where it cannot."""
    if sources_digest() != task["sources"]:
        unfit = (
            f"has another FluxFit ({flux_core.__version__} in {PACKAGE}), and would draw other "
            f"pictures: expected {task['version']}, file by file as the driver has it"
        )
        return None, {"unfit": unfit, "kind": SETUP}
    if Path(task["working_folder"]).is_dir():  # input and output are relative to it
        os.chdir(task["working_folder"])
    if task["models"] and Path(task["models"]).is_dir():
        os.environ.setdefault("FLUXFIT_MODELS", task["models"])
    torch.set_num_threads(task["threads"])
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else "cpu"
    return NodeDrawer(task), {"device": device, "torch": torch.__version__}


class NodeDrawer:
    """Draws for a driver elsewhere."""

    def __init__(self, task: Mapping[str, Any]) -> None:
        self.drawer = Drawer(task["graph"], private=task["private"])
        self.files = NodeFiles(self.drawer.graph)
        self.out = Path(task["out"])
        self.shared = sees_token(self.out, task["token"])

    def draw(self, sent: Mapping[str, Any]) -> dict[str, Any]:
        """Draw a job; ``unfit`` where this node cannot, and another may."""
        job = Job(sent["id"], sent["line"], sent["values"])
        try:
            self.files.check(job, sent["files"])
        except NodeFileError as fault:
            return {"unfit": str(fault), "kind": FILES}
        result = attempt(self.drawer, job, "")
        try:
            pictures = [
                (picture.name, self.written(picture.name, picture.content), picture.pixels)
                for picture in result.drawn
            ]
        except OSError as fault:
            return {"unfit": f"cannot write to {self.out} ({reason(fault)})", "kind": DISK}
        return {
            "pictures": pictures,
            "error": None if result.error is None else one_line(result.error),
            "retryable": result.retryable,
            "seconds": result.seconds,
        }

    def written(self, name: str, content: bytes | None) -> bytes | None:
        """Write a picture; its bytes where the driver has to."""
        if not self.shared or content is None:
            return content
        with writing(self.out / picture_path(name)) as partial:
            partial.write_bytes(content)
        return None


def sees_token(folder: Path, token: str) -> bool:
    """Whether this node's folder of that name is the driver's."""
    try:
        return (folder / TOKEN).read_text(encoding="utf-8") == token
    except OSError:
        return False
