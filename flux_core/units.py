"""Sizes and times in the units that a person reads."""

from __future__ import annotations

GB = 1e9


def readable_bytes(count: float) -> str:
    """Bytes as GB, or as MB or kB where they are few."""
    if 0 < count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / GB:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def readable_seconds(seconds: float) -> str:
    """Seconds with as many digits as tell something."""
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds:.2g} s"
