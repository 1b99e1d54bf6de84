"""What a person is told once, however many layers it is true of."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)

_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Log a fallback the first time that it happens."""
    if message not in _warned:
        _warned.add(message)
        log.warning("%s", message)
