"""Files of training runs, in folders where anybody may write: what is read and what replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flux_core.checkpoint.reader import open_source
from flux_core.files import folders_below, parse_json, write_new, writing
from flux_core.pictures import is_picture
from flux_core.pocket import ASSETS
from flux_core.train import ConfigError, TrainConfig

from . import host

#: Where runs are, below the output folder.
RUNS = "training"


def dataset_roots() -> list[Path]:
    """Where folders of pictures lie: the input folder, and those that FluxFit ships."""
    return [host.input_folder(), ASSETS / "datasets"]


def dataset_names() -> list[str]:
    """Folders that hold pictures, without repeats."""
    matches = [
        folder.relative_to(root).as_posix()
        for root in dataset_roots()
        for folder, files in folders_below(root)
        if folder != root and any(is_picture(Path(name)) for name in files)
    ]
    return list(dict.fromkeys(matches))


def dataset_path(name: str) -> Path:
    """The folder of that name; raises ``FileNotFoundError`` where there is none."""
    for root in dataset_roots():
        path = host.inside(root, name)
        if path.is_dir():
            return path
    raise FileNotFoundError(f"no folder {name!r} in the input folder {host.input_folder()}")


def within_folders(config: TrainConfig, run: str, runs_folder: Path) -> TrainConfig:
    """A run's settings as a file has them, kept to this run and to the folders of data sets.

    The file lies where anybody may write. Raises ``ConfigError`` for one that reads elsewhere.
    """
    if config.name != run:
        raise ConfigError(f"{run}: its settings are of a run {config.name!r}")
    roots = [root.resolve() for root in dataset_roots()]
    for folder in (*(data.folder for data in config.data), config.validation.folder):
        real = Path(folder).resolve()
        if folder and not any(real.is_relative_to(root) for root in roots):
            raise ConfigError(f"{run}: its settings name a folder outside of the input folder")
    return replace(config, output=str(runs_folder), cache=str(runs_folder / ".cache"))


def publish(path: Path) -> Path:
    """A copy of a LoRA where the loaders look for LoRAs.

    The copy of the same run is replaced; one of another run, or of another trainer, is left alone,
    and the new one has a number behind its name.
    """
    content, run = path.read_bytes(), run_of(path)
    published, number = host.output_folder().resolve() / "loras" / path.name, 1
    while not write_new(published, content):
        if run_of(published) == run:
            with writing(published) as partial:
                partial.write_bytes(content)
            break
        number += 1
        published = published.with_name(f"{path.stem}_{number}{path.suffix}")
    return published


def run_of(path: Path) -> object:
    """What tells the run that a LoRA is of; a new object, equal to none, for what is of none."""
    try:
        settings = parse_json(open_source(path).metadata["fluxfit.config"])
        return [settings[name] for name in ("name", "seed", "data", "lora", "model")]
    except (ValueError, KeyError, TypeError):
        return object()
