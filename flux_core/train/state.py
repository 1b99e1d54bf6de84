"""A training run on disk: everything that the next step depends on.

    <run>/config.json                         the settings
    <run>/checkpoints/step-000250/
        state.safetensors, state.json         parameters, optimizer, mean, step, history
        <name>.safetensors ...                the LoRA as it is, to draw with
    <run>/<name>.safetensors ...              the LoRA at the end

A checkpoint is a folder that is written under another name and renamed when it is whole. Random
numbers are made from the seed and the step, so that the step is all that there is to keep of them.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import ConfigError
from ..files import parse_json, read_json, read_text, reading, sync, write_text, writing
from .config import TrainConfig
from .settings import from_mapping, to_mapping

#: Settings that a run may go on with after they changed.
CHANGEABLE = ("output", "cache", "steps", "save_every", "keep", "samples", "validation", "offload")
STATE = "state"


def split_tensors(tree: Any, tensors: dict[str, Tensor], name: str = "") -> Any:
    """A tree of dicts and lists for JSON, its tensors put into ``tensors``; raises ``TypeError``
    for anything else."""
    if isinstance(tree, Tensor):
        tensors[name] = tree.detach().cpu().contiguous()
        return {"__tensor__": name}
    if isinstance(tree, dict):
        return {
            "__dict__": [
                [key, split_tensors(value, tensors, f"{name}.{key}")] for key, value in tree.items()
            ]
        }
    if isinstance(tree, list | tuple):
        return [split_tensors(value, tensors, f"{name}.{i}") for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"{name} is a {type(tree).__name__}, which a checkpoint cannot hold")


def join_tensors(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of ``split_tensors``; tuples come back as lists."""
    if isinstance(tree, list):
        return [join_tensors(value, tensors) for value in tree]
    if isinstance(tree, dict) and "__tensor__" in tree:
        return tensors[tree["__tensor__"]]
    if isinstance(tree, dict):
        return {key: join_tensors(value, tensors) for key, value in tree["__dict__"]}
    return tree


def checkpoints_of(run: Path) -> list[Path]:
    """A run's whole checkpoints, the oldest first."""
    folders = (run / "checkpoints").glob("step-*")
    return sorted(p for p in folders if (p / f"{STATE}.json").is_file())


def write_checkpoint(
    run: Path, step: int, tree: dict[str, Any], export: Callable[[Path], object], keep: int
) -> Path:
    """Write a checkpoint and take away old ones.

    Args:
        export: writes the LoRA's own files into a folder.

    Raises ``OSError`` where the disk is full; older checkpoints are untouched then.
    """
    checkpoints = run / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    folder = checkpoints / f"step-{step:06}"
    partial = checkpoints / f".step-{step:06}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        tensors: dict[str, Tensor] = {}
        skeleton = split_tensors(tree, tensors)
        with writing(partial / f"{STATE}.safetensors") as file:
            save_file(tensors, file)
        export(partial)
        (partial / f"{STATE}.json").write_text(json.dumps(skeleton))
        for path in partial.iterdir():
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in checkpoints_of(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What ``write_checkpoint`` was given; raises ``ConfigError`` where the files are broken."""
    try:
        skeleton = parse_json(read_text(folder / f"{STATE}.json"))
        return join_tensors(skeleton, load_file(folder / f"{STATE}.safetensors"))
    except Exception as error:  # missing, cut short, not JSON: whatever it is, it is the reason
        raise ConfigError(
            f"{folder}: is no whole checkpoint ({type(error).__name__}: {error}); delete it to go "
            "on from the one before"
        ) from error


def write_config(config: TrainConfig) -> None:
    """Write the settings of a run into its folder."""
    write_text(config.folder / "config.json", json.dumps(to_mapping(config), indent=2) + "\n")


def read_run(run: Path) -> TrainConfig:
    """The settings of a run; raises ``ConfigError`` where there is none."""
    path = run / "config.json"
    if not path.is_file():
        raise ConfigError(f"{run}: holds no training run (no config.json)")
    raw = read_json(path, "a run's settings")
    with reading(path, "a run's settings", ConfigError):
        return from_mapping(TrainConfig, raw)


def refuse_changes(config: TrainConfig, before: TrainConfig) -> None:
    """Raise ``ConfigError`` where a run cannot go on with settings that were others before."""
    for f in dataclasses.fields(config):
        now, then = getattr(config, f.name), getattr(before, f.name)
        if f.name not in CHANGEABLE and now != then:
            raise ConfigError(
                f"{f.name} is {now!r} and was {then!r} when this run began: a run goes on as it "
                "was; choose another name for a new one"
            )


def state_to(tree: Any, device: torch.device) -> Any:
    """A tree of an optimizer's state with its tensors on a device."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: state_to(value, device) for key, value in tree.items()}
    if isinstance(tree, list):
        return [state_to(value, device) for value in tree]
    return tree
