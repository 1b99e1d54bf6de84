"""A run as a whole: it learns, stops, goes on, and writes what others open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from flux_core import load_lora
from flux_core.lora import match_lora
from flux_core.offload import OffloadRunner
from flux_core.train.config import (
    ConfigError,
    LoraConfig,
    ObjectiveConfig,
    OffloadConfig,
    OptimizerConfig,
    SamplesConfig,
    ValidationConfig,
)
from flux_core.train.history import TrainingEvent
from flux_core.train.state import checkpoints_of, read_run
from flux_core.train.trainer import Trainer, shareable
from tests.training_runs import new_trainer, pocket_models, train_config, trained_parameters

SAMPLES = SamplesConfig(prompts=("a red circle",), every=2, width=64, height=64, steps=2)


class StopError(Exception):
    """What a person who cancels raises."""


def stopping_at(step: int):
    def on_event(event: TrainingEvent) -> None:
        if event.what == "training" and event.done == step:
            raise StopError

    return on_event


def flat(tree) -> list:
    """Tensors and numbers of a state, in order."""
    if isinstance(tree, dict):
        return [x for key in sorted(tree, key=str) for x in flat(tree[key])]
    if isinstance(tree, list | tuple):
        return [x for value in tree for x in flat(value)]
    return [tree]


def same(a, b) -> bool:
    return len(flat(a)) == len(flat(b)) and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(flat(a), flat(b), strict=True)
    )


def full(tmp_path: Path, **more):
    """Settings with everything on that the next step could depend on."""
    settings = {
        "steps": 4,
        "lora": LoraConfig(rank=4, ema=0.9),
        "optimizer": OptimizerConfig(
            learning_rate=1e-3, warmup=2, schedule="cosine", accumulation=2
        ),
        "validation": ValidationConfig(every=2, levels=2),
        "samples": SAMPLES,
        "objective": ObjectiveConfig(timesteps="shift", caption_dropout=0.3),
    }
    return train_config(tmp_path, **settings | more)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_stopped_and_resumed_is_uninterrupted_to_the_bit(tmp_path, name):
    optimizer = replace(full(tmp_path).optimizer, name=name)
    whole = new_trainer(full(tmp_path, name="whole", optimizer=optimizer))
    done = whole.run()
    config = full(tmp_path, name="parts", optimizer=optimizer)
    for step in (1, 3):
        with pytest.raises(StopError):
            new_trainer(config, on_event=stopping_at(step)).run(resume=step > 1)
        (folder,) = checkpoints_of(config.folder)[-1:]
        assert folder.name == f"step-{step:06}"
        assert match_lora(load_lora(folder / "parts.safetensors"), whole.models.transformer)
    last = new_trainer(config)
    resumed = last.run(resume=True)
    assert same(last.learner.state(), whole.learner.state())
    assert vars(resumed.history) == vars(done.history)
    assert len(done.history.losses) == 4 and len(done.history.validation) == 2
    assert all(map(torch.equal, resumed.samples, done.samples))
    assert [f.read_bytes() for f in resumed.files] != []
    for a, b in zip(resumed.files, done.files, strict=True):
        with safe_open(a, "pt") as x, safe_open(b, "pt") as y:
            assert all(torch.equal(x.get_tensor(k), y.get_tensor(k)) for k in x.keys())  # noqa: SIM118


def test_it_goes_on_as_it_was_or_not_at_all(tmp_path):
    config = train_config(tmp_path, save_every=2)
    new_trainer(config).run()
    with pytest.raises(ConfigError, match="holds a run of 2 checkpoints already"):
        new_trainer(config).run()
    with pytest.raises(ConfigError, match=r"batch is 1 and was 2 when this run began"):
        new_trainer(replace(config, batch=1)).run(resume=True)
    with pytest.raises(ConfigError, match="another base model, or at another precision"):
        new_trainer(config, "bf16").run(resume=True)
    with pytest.raises(ConfigError, match="holds no training run"):
        new_trainer(replace(config, name="other")).run(resume=True)
    longer = new_trainer(replace(config, steps=6))
    assert len(longer.run(resume=True).history.losses) == 6
    assert read_run(config.folder).steps == 6


def as_on_a_card(run: Trainer) -> Trainer:
    """The CPU stands for a card with memory of its own."""
    run.runner.policy = replace(run.runner.policy, separate_memory=True)
    return run


def test_every_policy_trains_the_same_lora(tmp_path):
    results = {}
    places = (("none", False), ("component", True), ("stream", False), ("stream", True))
    for mode, on_host in places:
        offload = OffloadConfig(mode, activations_on_host=on_host)
        config = full(tmp_path, name=f"{mode}-{on_host}", offload=offload, steps=2)
        run = as_on_a_card(new_trainer(config))
        done = run.run()
        part = done.report.parts["training"]
        assert bool(part.streamed) == (mode == "stream")
        results[config.name] = trained_parameters(run), done.samples[0]
    first = results.pop("none-False")
    for parameters, picture in results.values():
        assert torch.equal(parameters, first[0]) and torch.equal(picture, first[1])


def test_memory_that_runs_out_is_planned_again_once(tmp_path, caplog):
    config = train_config(tmp_path, name="plain")
    plain = as_on_a_card(new_trainer(config))
    plain.run()
    run = as_on_a_card(new_trainer(replace(config, name="short")))
    real, calls = run.learner.losses, 0

    def failing(*args):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("injected")
        return real(*args)

    run.learner.losses = failing
    done = run.run()
    assert "ran out of memory (injected)" in caplog.text
    assert done.report.parts["training"].streamed
    assert torch.equal(trained_parameters(run), trained_parameters(plain))
    twice = as_on_a_card(new_trainer(replace(config, name="twice")))
    twice.learner.losses = mock.Mock(side_effect=torch.OutOfMemoryError("injected"))
    with pytest.raises(torch.OutOfMemoryError):
        twice.run()


def test_losses_fall_and_the_model_is_as_it_was(tmp_path):
    config = full(
        tmp_path,
        steps=30,
        lora=LoraConfig(rank=8),
        batch=4,
        save_every=0,
        optimizer=OptimizerConfig(learning_rate=3e-3),
        validation=ValidationConfig(every=15, levels=4),
        samples=SamplesConfig(),
    )
    transformer = pocket_models().transformer
    before = {name: t.clone() for name, t in transformer.state_dict().items()}
    run = new_trainer(config)
    done = run.run()
    first = sum(done.history.losses[:15]) / 15
    assert sum(done.history.losses[-15:]) / 15 < 0.8 * first
    after = transformer.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    rows = (config.folder / "history.csv").read_text().splitlines()
    assert len(rows) == 31 and rows[0].startswith("step,loss")
    with Image.open(config.folder / "loss.png") as picture:
        assert picture.size == (800, 400)


def test_samples_and_the_running_mean(tmp_path):
    config = full(tmp_path)
    run = new_trainer(config)
    done = run.run()
    names = sorted(p.name for p in (config.folder / "samples").iterdir())
    assert names == [f"step-{n:06}-0.png" for n in (0, 2, 4)]
    assert done.samples[0].shape == (64, 64, 3)
    means = run.learner.ema.means
    with safe_open(done.files[1], "pt") as file:
        name = f"lora_unet_{run.learner.lora.names[0].replace('.', '_')}.lora_down.weight"
        written = file.get_tensor(name)
        assert torch.equal(written, means[0].bfloat16())
        about = file.metadata()
    assert about["fluxfit.step"] == "4" and about["ss_network_dim"] == "4"
    assert len(about["fluxfit.base"]) == 64
    assert json.loads(about["fluxfit.config"])["lora"]["rank"] == 4


def test_what_is_given_away_has_no_paths(tmp_path):
    settings = json.dumps(shareable(train_config(tmp_path)))
    assert str(tmp_path) not in settings and "pictures" in settings


def test_the_runner_of_a_host_is_used(tmp_path):
    runner = OffloadRunner(None, "cpu")
    done = new_trainer(train_config(tmp_path, steps=1), runner=runner).run()
    assert done.report is runner.report and "training" in runner.report.parts
