"""Makes the core importable by its one name, ``flux_core``, wherever this folder lies.

The host opens FluxFit by its path and under a name of its own, so the core beside this folder is on
nobody's search path. Imported relatively it would bear the host's name for us, and a person's own
``import flux_core`` would then load it a second time, with a second set of pinned memory.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAME = "flux_core"
FOLDER = Path(__file__).resolve().parents[1] / NAME


def import_core() -> None:
    """Import the core from beside this folder, whatever else is installed.

    Raises ``ImportError`` where one of another place, which may be of another version, is imported
    already.
    """
    if not FOLDER.is_dir():  # installed by pip, which lays it on the search path
        return
    if NAME in sys.modules:
        other = sys.modules[NAME]
        place = Path(str(other.__file__)).resolve().parent
        if place != FOLDER:
            version = getattr(other, "__version__", "of no version")
            raise ImportError(
                f"{NAME} {version} of {place} is imported already, FluxFit needs its own, "
                f"{FOLDER}: uninstall the other one"
            )
        return
    spec = importlib.util.spec_from_file_location(
        NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[NAME]
        raise
