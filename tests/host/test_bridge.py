"""The host's samplers draw the same with its own FLUX loader and with ours (``bridge.py``)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host.prompts import ROOT

SCRIPT = Path(__file__).with_name("bridge.py")
#: The checks of the script, which cannot be imported outside of a host.
NAMES = [
    name
    for path in sorted(SCRIPT.parent.glob("bridge_*.py"))
    for name in re.findall(r"@check\([^)]*\)\ndef (\w+)\(", path.read_text())
]


@pytest.fixture(scope="module")
def results(server) -> dict[str, tuple[str, str]]:
    """Each check's word and message."""
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(SCRIPT)]
    command += [os.environ["COMFYUI_PATH"], str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    results_by_name = {}
    for line in done.stdout.splitlines():
        word, _, rest = line.partition(" ")
        name, _, message = rest.partition(" ")
        if word in ("ok", "skip", "fail"):
            results_by_name[name] = word, message
    assert results_by_name, done.stderr[-3000:]
    return results_by_name


def test_the_script_has_checks():
    assert len(NAMES) > 20


@pytest.mark.parametrize("name", NAMES)
def test_bridge(name, results):
    word, message = results[name]
    if word == "skip":
        pytest.skip("this host has no such node")
    assert word == "ok", message
