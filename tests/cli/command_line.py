"""Calling the command line in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


POCKET = ROOT / "assets" / "pocket"


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)
