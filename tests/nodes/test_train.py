"""The training nodes, as a graph runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fluxfit.nodes import host, training_files
from fluxfit.nodes.dataset import FluxFitDataset
from fluxfit.nodes.train import run_names

from flux_core.train import ConfigError
from tests import training_runs
from tests.cli.command_line import call, call_apart
from tests.nodes.node_calls import defaults, node

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "transformer": "fluxfit_pocket.safetensors",
    "clip_l": "fluxfit_pocket_clip_l.safetensors",
    "t5": "fluxfit_pocket_t5.safetensors",
    "vae": "fluxfit_pocket_vae.safetensors",
}


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """An empty folder with pictures in its input folder."""
    monkeypatch.chdir(tmp_path)
    training_runs.write_pictures(tmp_path / "input" / "mine" / "flat")
    return tmp_path


@pytest.fixture(scope="module")
def loaded():
    with torch.inference_mode():
        return node("FluxLoaderFP8").load(**defaults("FluxLoaderFP8", **FILES))


def opened(folder: str = "mine/flat", **more):
    sizes = {"resolution": 64, "bucket_step": 16}
    return node("FluxFitDataset").open(**defaults("FluxFitDataset", folder=folder, **sizes) | more)[
        "result"
    ]


def settings(**more):
    return node("FluxFitTrainSettings").make(**defaults("FluxFitTrainSettings", steps=2) | more)[0]


def train(loaded, dataset, train_settings, **more):
    model, encoders, vae = loaded[:3]
    given = (
        defaults(
            "FluxFitTrainLora",
            name="mine",
            sample_prompts="a red circle\n\n a blue one ",
            sample_every=1,
            sample_steps=2,
        )
        | more
    )
    with torch.inference_mode():  # as the host does
        return node("FluxFitTrainLora").train(
            model, encoders, vae, dataset=dataset, settings=train_settings, **given
        )["result"]


def test_a_dataset_is_chosen_by_name_and_shown(working_folder):
    assert training_files.dataset_names() == ["mine/flat", "crescent"]
    dataset, pictures, report = opened(trigger="abc")
    assert report == "5 pictures: 5 of 64x64" and pictures.ndim == 4
    more, _, report = opened("crescent", dataset=dataset, repeats=2)
    assert [d.repeats for d in more.folders] == [1, 2] and report.startswith("25 pictures: 45 of")
    with pytest.raises(ValueError, match="leaves the folder"):
        opened("../../secret")
    with pytest.raises(FileNotFoundError, match="no folder 'nothing'"):
        opened("nothing")
    before = FluxFitDataset.IS_CHANGED("mine/flat")
    (working_folder / "input" / "mine" / "flat" / "0.txt").write_text("another")
    assert FluxFitDataset.IS_CHANGED("mine/flat") != before


def test_training_gives_a_model_with_the_lora_and_its_file(working_folder, loaded):
    dataset = opened()[0]
    model, loss, samples, path = train(loaded, dataset, settings())
    assert len(model.loras) == 1 and loss.shape[-1] == 3 and samples.shape == (2, 64, 64, 3)
    assert Path(path) == working_folder / "output" / "loras" / "mine.safetensors"
    assert "mine.safetensors" in host.model_names("loras")
    applied = node("FluxFitLoraLoader").load(
        **defaults("FluxFitLoraLoader", model=loaded[0], lora="mine.safetensors")
    )
    assert applied[0].loras[0][0].layers.keys() == model.loras[0][0].layers.keys()
    again = train(loaded, dataset, settings())  # it is there already, and finished
    assert torch.equal(again[2], samples)
    with pytest.raises(ConfigError, match="holds a run"):
        train(loaded, dataset, settings(), existing="refuse")
    with pytest.raises(ConfigError, match=r"lora is LoraConfig\(rank=8.*rank=16"):
        train(loaded, dataset, settings(rank=8))


def test_a_cancelled_run_goes_on_where_it_was(working_folder, loaded, monkeypatch):
    dataset = opened()[0]
    *_, path = train(loaded, dataset, settings(steps=4), name="whole")

    class CancelError(Exception):
        pass

    def update(bar, done: int, preview=None) -> None:
        if bar.what.startswith("training") and done == 3:
            raise CancelError

    with monkeypatch.context() as patched, pytest.raises(CancelError):
        patched.setattr(host.Progress, "update", update)
        train(loaded, dataset, settings(steps=4), name="parts")
    assert run_names() == ["parts", "whole"]
    with torch.inference_mode():
        train_settings = node("FluxFitResumeTraining").resume(*loaded[:3], run="parts", steps=0)[
            "result"
        ]
    whole, parts = (Path(p).read_bytes()[-1000:] for p in (path, train_settings[3]))
    assert whole == parts
    with torch.inference_mode():
        longer = node("FluxFitResumeTraining").resume(*loaded[:3], run="parts", steps=6)
    assert "6 steps" in longer["ui"]["text"][0]


def test_what_cannot_be_trained_is_said(working_folder, loaded):
    model, encoders, vae = loaded[:3]
    dataset = opened()[0]
    *_, path = train(loaded, dataset, settings())
    branched = node("FluxFitLoraLoader").load(
        **defaults("FluxFitLoraLoader", model=model, lora=Path(path).name)
    )[0]
    with pytest.raises(ConfigError, match="there are LoRAs on this model"):
        train((branched, encoders, vae), dataset, settings())
    with pytest.raises(ConfigError, match="needs the VAE of a FluxFit loader"):
        train((model, encoders, object()), dataset, settings())


CONFIG = """
name = "fox"
steps = 3
save_every = 2
[[data]]
folder = "mine/flat"
resolutions = [64]
step = 16
"""


def test_the_command(working_folder):
    config = working_folder / "input" / "run.toml"
    config.write_text(CONFIG)
    done = call_apart("train", str(config), "--quantize", "float8_e4m3fn", cwd=working_folder)
    assert done.returncode == 0, done.stderr
    assert "LoRA: output/training/fox/fox.safetensors" in done.stdout
    assert (working_folder / "output/training/fox/timesteps.png").is_file()
    assert (
        '"precision": "fp8_e4m3fn"'
        in (working_folder / "output/training/fox/config.json").read_text()
    )
    again = call("train", str(config), cwd=working_folder)
    assert again.returncode == 2 and "resume it, or choose another name" in again.stderr
    more = ("--resume", "--quantize", "float8_e4m3fn")
    resumed = call("train", str(config), *more, cwd=working_folder)
    assert resumed.returncode == 0, resumed.stderr
    config.write_text(CONFIG.replace("steps", "stepz"))
    wrong = call("train", str(config), cwd=working_folder)
    assert wrong.returncode == 2 and "stepz is no setting; the nearest is 'steps'" in wrong.stderr
