"""What can be wrong with a file, told in one line that a person can act on."""

from __future__ import annotations

#: Characters of a message; what a file says of itself may have no end.
LONGEST = 2000


class FileError(ValueError):
    """A file cannot be used; the message names it, what was found and what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class CheckpointError(FileError):
    """A file of weights cannot be used."""


class ConfigError(FileError):
    """A run's settings or its data cannot be used; the message names the field or the file."""


class FolderBusyError(ConfigError):
    """Somebody else writes to a folder now."""


class PictureError(FileError):
    """A picture cannot be opened."""


def one_line(text: str) -> str:
    """A text on one line, what cannot be printed escaped, and cut where it is very long."""
    words = " ".join(text[: 4 * LONGEST].split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 4] + " ..."
