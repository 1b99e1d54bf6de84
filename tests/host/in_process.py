"""A host opened in this process, for scripts that compare its own models with ours.

    python SCRIPT COMFYUI FLUXFIT

Everything runs on the CPU. ``call`` runs any node of the host or of FluxFit by its id.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

comfyui, root = map(Path, sys.argv[1:3])
CHOSEN = sys.argv[3:]
sys.path[:0] = [str(comfyui), str(root)]
work = Path(tempfile.mkdtemp())
sys.argv = ["main.py", "--cpu", "--base-directory", str(work)]
os.chdir(comfyui)

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402

import nodes as host_nodes  # noqa: E402

comfy.utils.PROGRESS_BAR_ENABLED = False
spec = importlib.util.spec_from_file_location(
    "custom_nodes.FluxFit", root / "__init__.py", submodule_search_locations=[str(root)]
)
assert spec is not None and spec.loader is not None
package = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = package
spec.loader.exec_module(package)
OURS = package.NODE_CLASS_MAPPINGS
asyncio.run(host_nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
NODES = host_nodes.NODE_CLASS_MAPPINGS
POCKET = root / "assets" / "pocket"


def has(name: str) -> bool:
    """Whether this host has a node."""
    return name in NODES


def call(name: str, **inputs: Any) -> tuple[Any, ...]:
    """A node's outputs; inputs that are not given have their defaults."""
    node = OURS.get(name) or NODES[name]
    specs = node.INPUT_TYPES()
    values = {key: first_value(given) for key, given in specs.get("required", {}).items()} | inputs
    values = {key: value for key, value in values.items() if value is not None}
    function = getattr(node, node.FUNCTION)
    owner = node if inspect.ismethod(function) else node()
    out = getattr(owner, node.FUNCTION)(**values)
    if isinstance(out, dict):
        out = out["result"]
    return tuple(getattr(out, "result", out))


def first_value(given: tuple[Any, ...]) -> Any:
    """The default of an input, or its first choice; None for sockets."""
    options = given[1] if len(given) > 1 else {}
    if "default" in options:
        return options["default"]
    choices = given[0] if isinstance(given[0], list) else options.get("options")
    return choices[0] if choices else None


def choices(name: str, key: str) -> list[str]:
    """What one input of a node may be."""
    specs = NODES[name].INPUT_TYPES()
    given = {**specs.get("required", {}), **specs.get("optional", {})}[key]
    return given[0] if isinstance(given[0], list) else given[1]["options"]


def module(name: str) -> Any:
    """A module of ours as the host opened it."""
    return sys.modules[f"{spec.name}.{name}"]


__all__ = [
    "CHOSEN",
    "NODES",
    "POCKET",
    "call",
    "choices",
    "folder_paths",
    "has",
    "module",
    "torch",
    "work",
]
