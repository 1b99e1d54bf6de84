"""Where stdout is full, or a pipe that nobody reads, as a shell has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command_line import POCKET, ROOT

FULL = Path("/dev/full")
HELP = ("--help",)
INSPECT = ("inspect", str(POCKET / "vae" / "fluxfit_pocket_vae.safetensors"), "--json")
WRONG = ("--json", "paint")


@pytest.mark.skipif(not FULL.exists(), reason="the system has no full device")
@pytest.mark.parametrize(
    ("words", "status"), [(HELP, 1), (("--version",), 1), (INSPECT, 1), (WRONG, 2)]
)
def test_a_full_stdout_is_told(words, status, tmp_path):
    with open(FULL, "w") as full:
        done = subprocess.run(
            [sys.executable, str(ROOT), *words],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == status
    line = "fluxfit: stdout: No space left on device\n"
    assert done.stderr.startswith(line) and done.stderr.count("\n") == status


@pytest.mark.parametrize("words", [HELP, INSPECT])
def test_a_closed_pipe_ends_quietly(words, tmp_path):
    command = subprocess.Popen(
        [sys.executable, str(ROOT), *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == ("", 0)
    command.stderr.close()
