"""Settings of a training run from a file and back: TOML, YAML or JSON.

An unknown field is refused with the nearest one that there is.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from ..bounds import brief, is_integer
from ..errors import ConfigError
from ..files import parse_json, read_text, reading
from .config import MODEL_FILES, TrainConfig

#: Letters and brackets of settings in YAML, whose reader takes minutes for what nests without end.
LONGEST_YAML, MOST_BRACKETS = 200_000, 1000
#: Letters of settings in TOML, and dots of a line: a name takes the square of its parts.
LONGEST_TOML, MOST_DOTS = 1_000_000, 500


def parse_value(kind: type, value: Any, where: str) -> Any:
    """A value of a file as a field of some type; raises ``ConfigError`` naming the field."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind):
        return from_mapping(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            if is_dataclass(inner[0]) or isinstance(value, Mapping):
                raise ConfigError(f"{where} is {value!r}, expected a list ([[{where}]] in TOML)")
            value = [value]
        if inner[-1] is not Ellipsis and len(value) != len(inner):
            raise ConfigError(f"{where} has {len(value)} entries, expected {len(inner)}")
        return tuple(parse_value(inner[0], entry, where) for entry in value)
    if origin is types.UnionType:
        return None if value is None else parse_value(inner[0], value, where)
    if kind is float and is_integer(value) and abs(value) < 10**300:
        return float(value)
    if kind is float and isinstance(value, str):  # YAML reads 1e-4 as a word
        try:
            return float(value)
        except ValueError:
            pass
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        words = {str: "a word", int: "a whole number", float: "a number", bool: "true or false"}
        raise ConfigError(f"{where} is {brief(value)}, expected {words[kind]}")
    return value


def from_mapping(kind: type, value: Any, where: str = "") -> Any:
    """A dataclass from a mapping of a file, checked field by field."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where or 'the file'} is {value!r}, expected fields and values")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    values = {}
    for name, entry in value.items():
        full = f"{where}.{name}" if where else str(name)
        if name not in names:
            near = difflib.get_close_matches(str(name), names, 1, 0.0)
            raise ConfigError(
                f"{full} is no setting; the nearest is {near[0]!r} (there are {', '.join(names)})"
            )
        values[name] = parse_value(hints[name], entry, full)
    return kind(**values)


def read_config(path: str | Path) -> TrainConfig:
    """Read a run's settings; paths in it are taken from the folder of the file.

    Raises ``ConfigError`` naming the file and the field.
    """
    path = Path(path)
    with reading(path, "settings of a training", ConfigError):
        return resolve_paths(from_mapping(TrainConfig, read_file(path)), path.parent)


def read_file(path: Path) -> Any:
    """What a file holds, by its ending; raises ``ConfigError`` where it cannot be read."""
    text = read_text(path)
    kind = path.suffix.lower()
    with reading(path, f"a {kind} file", ConfigError):
        if kind == ".toml":
            return toml_of(text)
        if kind in (".yaml", ".yml"):
            return yaml_of(text)
        if kind == ".json":
            return parse_json(text)
    raise ConfigError(f"ends with {path.suffix!r}, expected .toml, .yaml or .json")


def toml_of(text: str) -> Any:
    """What a TOML text holds; one whose names nest without end is refused."""
    if len(text) > LONGEST_TOML or max(line.count(".") for line in text.split("\n")) > MOST_DOTS:
        raise ConfigError("is too long, or has too many dots in a line, for settings in TOML")
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError("TOML needs Python 3.11 or the package tomli") from error
    return tomllib.loads(text)


def yaml_of(text: str) -> Any:
    """What a YAML text holds; one whose names stand for each other without end is refused."""
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("YAML needs the package pyyaml: pip install pyyaml") from error
    if len(text) > LONGEST_YAML or sum(map(text.count, "[{")) > MOST_BRACKETS:
        raise ConfigError("is too long, or has too many brackets, for settings in YAML")
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise ConfigError("aliases (*name) are not read: write the value itself")
    return yaml.safe_load(text)


def resolve_paths(config: TrainConfig, folder: Path) -> TrainConfig:
    """A config whose relative input paths begin at a folder."""

    def at(path: str) -> str:
        return str(folder / Path(path).expanduser()) if path else ""

    files = {name: at(getattr(config.model, name)) for name in MODEL_FILES}
    model = dataclasses.replace(config.model, **files)
    data = tuple(dataclasses.replace(d, folder=at(d.folder)) for d in config.data)
    validation = dataclasses.replace(config.validation, folder=at(config.validation.folder))
    return dataclasses.replace(config, model=model, data=data, validation=validation)


def to_mapping(config: TrainConfig) -> dict[str, Any]:
    """A config as ``from_mapping`` reads it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
