"""What a stranger's workflow may read and write, and what it may not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless, host
from fluxfit.nodes.training_files import publish, within_folders
from PIL import Image
from safetensors.torch import save_file

from flux_core.train import ConfigError, TrainConfig
from flux_core.train.config import DataConfig, ValidationConfig

ROOT = Path(__file__).resolve().parents[2]
CLIMBING = ("../x", "/tmp/x", "a/../../x", "..\\x", "C:x", "C:\\x", "a\0b", "NUL", "", "x" * 400)


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """A person's folders with a file outside of them that is not to be touched."""
    monkeypatch.chdir(tmp_path)
    for name in ("input", "output", "models"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path / "models"))
    Image.new("RGB", (16, 16)).save(tmp_path / "secret.png")
    return tmp_path


@pytest.mark.parametrize("name", CLIMBING)
def test_names_that_climb_open_and_write_nothing(name, folders):
    before = sorted(p for p in folders.rglob("*"))
    nodes = headless.KNOWN_NODES
    tries = (
        lambda: nodes["LoadImage"]().load(name),
        lambda: nodes["LoadImageMask"]().load(name, "red"),
        lambda: nodes["SaveImage"]().save(torch.zeros(1, 8, 8, 3), name),
        lambda: nodes["VAELoader"]().load(name),
        lambda: nodes["UNETLoader"]().load(name, "default"),
        lambda: nodes["FluxFitPrecisionPlan"]().load(name),
        lambda: nodes["FluxFitDataset"]().open(name, 64, 1, ""),
    )
    for attempt in tries:
        with pytest.raises((ValueError, OSError)):
            attempt()
    assert sorted(p for p in folders.rglob("*")) == before


@pytest.mark.parametrize("name", ["secret.png [output]", "x.png [temp]"])
def test_pictures_of_other_folders_are_refused(name, folders):
    with pytest.raises(ValueError, match="another folder"):
        headless.KNOWN_NODES["LoadImage"]().load(name)


def test_the_pages_note_behind_a_name_is_no_part_of_it(folders):
    Image.new("RGB", (16, 24)).save(folders / "input" / "a.png")
    image, _ = headless.KNOWN_NODES["LoadImage"]().load("a.png [input]")
    assert image.shape == (1, 24, 16, 3)


def run_config(**more) -> TrainConfig:
    data = (DataConfig(folder=str(host.input_folder().resolve() / "set")),)
    return replace(TrainConfig(name="run", data=data), **more)


def test_a_planted_configuration_reads_nothing_elsewhere(folders):
    runs = folders / "output" / "training"
    kept = within_folders(run_config(output="/etc", cache="/home"), "run", runs)
    assert kept.output == str(runs) and Path(kept.cache).is_relative_to(runs)
    for planted in (
        run_config(name="another"),
        run_config(data=(DataConfig(folder="/home"),)),
        run_config(data=(DataConfig(folder=str(folders)),)),
        run_config(validation=ValidationConfig(folder="/home")),
    ):
        with pytest.raises(ConfigError):
            within_folders(planted, "run", runs)


@pytest.mark.parametrize("metadata", ["../../secret.csv", "/etc/passwd", "C:x.csv"])
def test_a_table_outside_of_its_folder_is_not_read(metadata, folders):
    from flux_core.train.dataset import DataProblems, read_items

    (folders / "input" / "set").mkdir()
    (folders / "secret.csv").write_text("file_name,text\na.png,hello\n")
    config = DataConfig(folder=str(folders / "input" / "set"), metadata=metadata)
    with pytest.raises(ConfigError, match="leaves the folder"):
        read_items([config], DataProblems())


def trained(path: Path, name: str, value: float, seed: int = 0) -> Path:
    settings = {"name": name, "seed": seed, "data": [], "lora": {}, "model": {}}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {"x": torch.full((1,), value)}, path, metadata={"fluxfit.config": json.dumps(settings)}
    )
    return path


def test_a_trained_lora_replaces_its_own_runs_and_no_other(folders):
    loras = folders / "output" / "loras"
    first = publish(trained(folders / "run" / "a.safetensors", "a", 1.0))
    again = publish(trained(folders / "run" / "a.safetensors", "a", 2.0))
    assert first == again == loras / "a.safetensors"
    other = publish(trained(folders / "run2" / "a.safetensors", "a", 3.0, seed=1))
    assert other == loras / "a_2.safetensors"
    (loras / "b.safetensors").write_bytes(b"of another trainer")
    assert publish(trained(folders / "run" / "b.safetensors", "b", 1.0)).name == "b_2.safetensors"
    assert (loras / "b.safetensors").read_bytes() == b"of another trainer"


def test_a_plan_of_that_name_is_not_replaced(folders):
    node = NODE_CLASS_MAPPINGS["FluxFitMeasurePrecision"]()
    plans = host.plan_folders()[0]
    plans.mkdir(parents=True)
    (plans / "mine.json").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        node.measure(None, [], {}, "int8", 8.5, 1, 0, "mine")
    assert (plans / "mine.json").read_text() == "mine"


@pytest.mark.parametrize("source", ["raise KeyboardInterrupt", "exec('raise KeyboardInterrupt')"])
@pytest.mark.parametrize("module", ["argparse", "torch"])
@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_an_interrupt_inside_an_import_gives_the_status_too(module, source, tmp_path):
    (tmp_path / f"{module}.py").write_text(source)
    done = subprocess.run(
        [sys.executable, str(ROOT), "generate", "a red circle"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (130, "fluxfit: interrupted\n")


@pytest.mark.parametrize("delay", [1.0, 4.0, 7.0])
@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_an_interrupt_at_any_moment_ends_in_words_and_leaves_nothing(delay, tmp_path):
    command = [sys.executable, str(ROOT), "generate", "a red circle", "--steps", "500"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in message, message[-2000:]
    assert not list(tmp_path.rglob("*.partial"))
