"""What a command has done: words for people, and the same as data for programs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .exit_codes import DONE, KINDS

if TYPE_CHECKING:
    from flux_core.offload import MemoryReport


@dataclass(frozen=True)
class Outcome:
    """What a command's ``run`` returns: printed as ``text``, or, with ``--json``, as ``data``.

    ``status`` is the exit status where a command did what it could and not all of it.
    """

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    status: int = DONE


def as_json(data: dict[str, Any]) -> str:
    """One JSON object on one line; paths are texts. Raises ``ValueError`` for NaN."""
    return json.dumps(data, default=os.fspath, allow_nan=False)


def error_data(status: int, message: str) -> dict[str, Any]:
    """An error as ``--json`` prints it."""
    return {"error": {"kind": KINDS.get(status, KINDS[1]), "message": message}}


def memory_data(report: MemoryReport) -> dict[str, Any]:
    """What parts took: sizes in bytes, times in seconds; ``peak`` of a part is 0 where it was not
    measured."""
    parts = {
        name: {
            "weights": part.size,
            "predicted": part.predicted,
            "peak": part.peak,
            "computing": part.seconds,
            "moving": part.moving,
            "stalled": part.stalled,
            "streamed": part.streamed,
            "pinned": part.pinned,
            "replans": part.replans,
            "policy": part.mode,
            "layers": dict(part.kernels),
        }
        for name, part in report.parts.items()
    }
    return {"device": report.device, "weights_at_once": report.peak, "parts": parts}
