"""Calling the command line, in a process of its own or, in less time, in this one."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

from fluxfit.cli import main

ROOT = Path(__file__).resolve().parents[2]


POCKET = ROOT / "assets" / "pocket"


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What a command says and how it ends, called in this process."""
    out, err, before = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(cwd)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(arguments)
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def call_apart(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The same as a person calls it."""
    command = [sys.executable, str(ROOT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)
