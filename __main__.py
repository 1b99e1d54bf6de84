"""The command line without installing: ``python FluxFit COMMAND``, whatever the folder's name.

The console script ``fluxfit`` calls ``cli`` directly; here this folder is opened as the package.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACKAGE = "fluxfit"


def open_package() -> None:
    """Make this folder importable as ``fluxfit``, as the host does under a name of its own."""
    if PACKAGE in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        PACKAGE, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = module
    spec.loader.exec_module(module)


def main() -> int:
    """Run a command; an interrupt ends it in words even while Python still imports."""
    try:
        open_package()
        from fluxfit.cli import main as run_command

        status = run_command()
    except KeyboardInterrupt:
        print("fluxfit: interrupted", file=sys.stderr)
        status = 130
    # Python remembers an interrupt that came out of a text in ``exec`` (dataclasses are made so)
    # and ends a folder that it runs by the signal, whatever the status; the next text forgets it.
    exec("")
    return status


if __name__ == "__main__":
    sys.exit(main())
