"""What can be wrong with a file, told so that a person can act on it."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file cannot be used; the message names it, what was found and what was expected."""
