"""Who may import whom, and what importing may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOST_MODULES = {"comfy", "folder_paths", "nodes", "server", "execution", "latent_preview"}


def imported(path: Path) -> set[tuple[int, str]]:
    """(relative level, module) of every import in a file."""
    modules_imported: set[tuple[int, str]] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules_imported |= {(0, alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules_imported.add((node.level, node.module or ""))
    return modules_imported


@pytest.mark.parametrize("path", sorted((ROOT / "flux_core").rglob("*.py")), ids=lambda p: p.name)
def test_the_core_knows_neither_nodes_nor_host(path):
    depth = len(path.relative_to(ROOT / "flux_core").parts)
    for level, module in imported(path):
        assert level <= depth, f"{path} imports from outside flux_core"
        assert level or module.split(".")[0] not in HOST_MODULES


@pytest.mark.parametrize("path", sorted((ROOT / "nodes").rglob("*.py")), ids=lambda p: p.name)
def test_only_three_nodes_and_the_bridge_know_comfyui(path):
    for level, module in imported(path):
        if not level:
            assert module.split(".")[0] not in HOST_MODULES
    if (
        path.name not in ("host.py", "host_execution.py", "memory_manager.py")
        and path.parent.name != "bridge"
    ):
        assert "folder_paths" not in path.read_text() and "comfy." not in path.read_text()


def test_importing_the_core_waits_for_nothing_heavy():
    """Names are imported when they are asked for, and all of them are there."""
    heavy = ("torch", "numpy", "PIL", "transformers")
    code = (
        "import sys, flux_core\n"
        "from flux_core import bounds, errors, files, pocket, units\n"
        f"assert not set(sys.modules) & set({heavy!r}), sys.modules.keys()\n"
        "assert flux_core.__version__\n"
        "from flux_core import *\n"
        "assert all(name in globals() for name in flux_core.__all__)\n"
        "assert set(flux_core.__all__) == set(flux_core._MODULES)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_the_core_touches_no_gpu_and_no_network():
    code = (
        "import sys, socket; socket.socket.connect = None\n"
        "import flux_core, torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert not any(m.split('.')[0] in ('comfy', 'nodes', 'folder_paths') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


#: The core's parts; one imports only from itself and from those below it.
LAYERS = (
    "pipeline",
    "pipeline_inputs",
    "pipeline_files",
    "pipeline_pictures",
    "pipeline_prompts",
    "pipeline_images",
    "train",
    "calibration",
    "report",
    "sampling",
    "offload",
    "lora",
    "checkpoint",
    "models",
    "quant",
    "receipts",
    "record",
    "pocket",
    "pictures",
    "files",
    "bounds",
    "errors",
    "units",
    "version",
)


def layers_imported(path: Path) -> set[str]:
    """The layers that a file of the core imports, at its top or inside its functions."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    layers: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        module = node.module.split(".") if node.module else []
        target = [*parts[: len(parts) - node.level], *module]
        layers |= {target[1]} if len(target) > 1 else {alias.name for alias in node.names}
    return layers & set(LAYERS)


def test_imports_of_the_core_run_downwards():
    upwards = set()
    for path in sorted((ROOT / "flux_core").rglob("*.py")):
        name = path.relative_to(ROOT / "flux_core").with_suffix("").parts
        if name != ("__init__",):
            assert name[0] in LAYERS, f"{path} is in no layer"
            above = LAYERS[: LAYERS.index(name[0])]
            upwards |= {(".".join(name), up) for up in layers_imported(path) if up in above}
    assert not upwards


def test_nodes_know_no_command():
    for path in sorted((ROOT / "nodes").rglob("*.py")):
        assert not any("cli" in module.split(".") for _, module in imported(path)), path
