"""The version, which stands in ``pyproject.toml``: the registry of nodes reads it there."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def read_version() -> str:
    """From the folder that was cloned, or from what was installed."""
    if PROJECT.is_file():
        text = PROJECT.read_text(encoding="utf-8")
        stated = re.search(r'^name = "fluxfit"\nversion = "([^"]+)"', text, re.MULTILINE)
        if stated is not None:
            return stated[1]
    from importlib.metadata import version  # which takes longer than all else of this

    return version("fluxfit")
