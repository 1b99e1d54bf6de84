"""Grids and mappings as a person types them into one text, with the files that they name kept to
one folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from flux_core.bounds import brief
from flux_core.errors import ConfigError
from flux_core.files import below

from .grid import read_grid

QUOTED = re.compile(r'"[^"]*"')
NAME = re.compile(r"(?:^|(?<=\s))(?P<name>[\w.:]+)\s*=")


def arguments_of(text: str) -> list[str]:
    """``NAME=VALUES`` each: whatever stands up to the next name that an equals sign follows, with
    quotation marks around values that have such in them.

    Raises ``ConfigError`` where no name comes first, or a quotation mark is not closed.
    """
    if text.count('"') % 2:
        raise ConfigError(f"grid {brief(text)}: a quotation mark is not closed")
    hidden = QUOTED.sub(lambda match: "_" * len(match[0]), text)
    starts = [match.start("name") for match in NAME.finditer(hidden)]
    first = starts[0] if starts else len(text)
    if text[:first].strip():
        raise ConfigError(f"grid {brief(text[:first].strip())}: expected NAME=VALUES")
    return [text[start:end].strip() for start, end in pairwise([*starts, len(text)])]


def named_file(argument: str, folder: Path) -> Path | None:
    """The file of ``NAME=@file``, inside a folder; raises ``ConfigError`` for one outside."""
    value = argument.partition("=")[2]
    if not value.startswith("@"):
        return None
    try:
        return below(folder.resolve(), value[1:].strip('"'))
    except ValueError as fault:
        raise ConfigError(f"grid {argument!r}: {fault}") from fault


def grid_of_text(text: str, folder: Path) -> dict[str, list[Any]]:
    """Values by name; raises ``ConfigError`` naming the part that says none.

    Args:
        folder: where the files of ``@file`` are.
    """
    arguments = []
    for argument in arguments_of(text):
        path = named_file(argument, folder)
        name = argument.partition("=")[0]
        arguments.append(argument if path is None else f"{name}=@{path}")
    return read_grid(arguments)


def grid_files(text: str, folder: Path) -> Iterator[Path]:
    """The files that a grid names."""
    for argument in arguments_of(text):
        path = named_file(argument, folder)
        if path is not None:
            yield path


def mapping_of_text(text: str) -> dict[str, str]:
    """Inputs by names of columns, one ``NAME=NODE.INPUT`` a line; raises ``ConfigError``."""
    mapping: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, target = line.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"mapping {line!r}: expected NAME=NODE.INPUT")
        add_mapping(mapping, name, target)
    return mapping


def add_mapping(mapping: dict[str, str], name: str, target: str) -> None:
    """Map a name to an input; raises ``ConfigError`` where it is mapped already."""
    name, target = name.strip(), target.strip()
    if name in mapping:
        raise ConfigError(f"mapping: {name!r} is there twice, as {mapping[name]!r} and {target!r}")
    mapping[name] = target
