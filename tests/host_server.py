"""A real ComfyUI, started once, where ``COMFYUI_PATH`` names an installation.

``COMFYUI_PYTHON`` is the interpreter that has its requirements, by default the tests' own.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = os.environ.get("COMFYUI_PATH")
#: Where a host of any version keeps its templates, asked of its own interpreter.
FIND = """
import pathlib, sys
for path in sys.path:
    files = sorted(pathlib.Path(path).glob("comfyui_workflow_templates*/templates/*.json"))
    print(*files, sep="\\n")
    if files:  # an interpreter's own come before those that it borrows
        break
"""


def skip_without_host(items: list[pytest.Item], folder: Path) -> None:
    """Mark the tests of a folder as skipped where no host is named."""
    if COMFYUI:
        return
    skip = pytest.mark.skip(reason="COMFYUI_PATH names no ComfyUI installation")
    for item in items:
        if folder in item.path.parents:
            item.add_marker(skip)


def host_templates() -> dict[str, Path]:
    """Workflows that come with the host's page, by name."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    lines = subprocess.check_output([python, "-c", FIND], text=True).splitlines()
    return {Path(line).stem: Path(line) for line in lines if line}


class RunError(Exception):
    """A prompt ended without success; the message is its status."""


@dataclass
class Server:
    """A running host; ``base`` holds its models, inputs and outputs."""

    address: str
    base: Path
    log: Path
    process: int = 0
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            return json.load(answer)

    def run(self, prompt: dict[str, Any], timeout: float = 300) -> dict[str, Any]:
        """Queue an API prompt and wait for its history entry."""
        prompt = copy.deepcopy(prompt)
        for item in prompt.values():  # a cached SaveImage would report no file
            if item["class_type"] == "SaveImage":
                item["inputs"]["filename_prefix"] = f"run{next(self.numbers)}/picture"
        data = json.dumps({"prompt": prompt}).encode()
        request = urllib.request.Request(
            f"{self.address}/prompt", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                number = json.load(answer)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            entry = self.get(f"/history/{number}").get(number)
            if entry is not None and entry["status"].get("completed") is not None:
                if entry["status"]["status_str"] != "success":
                    raise RunError(json.dumps(entry["status"]))
                return entry
            time.sleep(0.2)
        raise TimeoutError(f"prompt {number} took over {timeout} s")

    def opened(self) -> list[str]:
        """Names of the model files that its process has opened so far, in order."""
        path = self.base / "custom_nodes" / "watcher" / "opened.txt"
        return path.read_text().split() if path.exists() else []

    def memory(self) -> int:
        """Bytes of memory that its process holds."""
        status = Path(f"/proc/{self.process}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])

    def pictures(self, entry: dict[str, Any]) -> list[Path]:
        """Files that a prompt saved, in the order of its nodes; of those alone that stand in it."""
        files = []
        outputs = {int(key): out for key, out in entry["outputs"].items() if key.isdecimal()}
        for _, out in sorted(outputs.items()):
            for image in out.get("images", []):
                files.append(self.base / image["type"] / image["subfolder"] / image["filename"])
        return files


#: A pack of nodes that has none: it writes down which model files the host's process opens.
WATCHER = """\
import os, sys
HERE = os.path.join(os.path.dirname(__file__), "opened.txt")
def watch(event, args):
    if event == "open" and str(args[0]).endswith((".safetensors", ".gguf")):
        with open(HERE, "a") as out:
            print(os.path.basename(str(args[0])), file=out)
sys.addaudithook(watch)
NODE_CLASS_MAPPINGS = {}
"""


@contextmanager
def running_server(
    base: Path, *flags: str, packs: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Server]:
    """The host with FluxFit and more flags; its models, inputs and outputs in a new folder.

    ``packs`` are packs of nodes by name: the text of each one's ``__init__.py``.
    """
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "FluxFit").symlink_to(ROOT, target_is_directory=True)
    for name, text in {"watcher": WATCHER, **packs}.items():
        (base / "custom_nodes" / name).mkdir()
        (base / "custom_nodes" / name / "__init__.py").write_text(text)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = base / "log.txt"
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu"]
    command += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
    command += flags
    with open(log, "w") as out:
        process = subprocess.Popen(command, cwd=COMFYUI, stdout=out, stderr=subprocess.STDOUT)
    started = Server(f"http://127.0.0.1:{port}", base, log, process.pid)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-3000:]
            try:
                started.get("/system_stats")
                break
            except OSError:
                time.sleep(0.2)
        yield started
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("comfyui")) as started:
        yield started
