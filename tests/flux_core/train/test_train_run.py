"""A run as a whole: it learns, stops, goes on, and writes what others open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from flux_core import load_lora, load_transformer
from flux_core.lora import lora_applied, match_lora
from flux_core.lora.save import save_lora
from flux_core.lora.trained import TrainedLora
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
from flux_core.train.state import checkpoints_of, read_checkpoint, read_run
from tests import tiny_models as tiny
from tests import training_runs as lessons

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = SamplesConfig(prompts=("a red circle",), every=2, width=64, height=64, steps=2)


class StopError(Exception):
    """What a person who cancels raises."""


def stopping_at(step: int):
    def told(news) -> None:
        if news.what == "training" and news.done == step:
            raise StopError

    return told


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
        "steps": 6, "lora": LoraConfig(rank=4, ema=0.9),
        "optimizer": OptimizerConfig(
            learning_rate=1e-3, warmup=2, schedule="cosine", accumulation=2
        ),
        "validation": ValidationConfig(every=2, levels=2), "samples": SAMPLES,
        "objective": ObjectiveConfig(timesteps="shift", caption_dropout=0.3),
    }  # fmt: skip
    return lessons.config(tmp_path, **settings | more)


class TestResuming:
    @pytest.mark.parametrize("name", ["adamw", "adafactor"])
    def test_stopped_and_resumed_is_uninterrupted_to_the_bit(self, tmp_path, name):
        optimizer = replace(full(tmp_path).optimizer, name=name)
        whole = lessons.trainer(full(tmp_path, name="whole", optimizer=optimizer))
        done = whole.run()
        config = full(tmp_path, name="parts", optimizer=optimizer)
        for step in (1, 3):
            with pytest.raises(StopError):
                lessons.trainer(config, told=stopping_at(step)).run(resume=step > 1)
            (folder,) = checkpoints_of(config.folder)[-1:]
            assert folder.name == f"step-{step:06}"
            assert match_lora(load_lora(folder / "parts.safetensors"), whole.parts.transformer)
        last = lessons.trainer(config)
        resumed = last.run(resume=True)
        assert same(last.learner.state(), whole.learner.state())
        assert vars(resumed.history) == vars(done.history)
        assert len(done.history.losses) == 6 and len(done.history.validation) == 3
        assert all(map(torch.equal, resumed.samples, done.samples))
        assert [f.read_bytes() for f in resumed.files] != []
        for a, b in zip(resumed.files, done.files, strict=True):
            with safe_open(a, "pt") as x, safe_open(b, "pt") as y:
                assert all(torch.equal(x.get_tensor(k), y.get_tensor(k)) for k in x.keys())  # noqa: SIM118

    def test_it_goes_on_as_it_was_or_not_at_all(self, tmp_path):
        config = lessons.config(tmp_path, save_every=2)
        lessons.trainer(config).run()
        with pytest.raises(ConfigError, match="holds a run of 2 checkpoints already"):
            lessons.trainer(config).run()
        with pytest.raises(ConfigError, match=r"batch is 1 and was 2 when this run began"):
            lessons.trainer(replace(config, batch=1)).run(resume=True)
        with pytest.raises(ConfigError, match="another base model, or at another precision"):
            lessons.trainer(config, "bf16").run(resume=True)
        with pytest.raises(ConfigError, match="holds no training run"):
            lessons.trainer(replace(config, name="other")).run(resume=True)
        longer = lessons.trainer(replace(config, steps=6))
        assert len(longer.run(resume=True).history.losses) == 6
        assert read_run(config.folder).steps == 6

    def test_a_broken_checkpoint_is_named(self, tmp_path):
        config = lessons.config(tmp_path, save_every=2)
        lessons.trainer(config).run()
        (folder,) = checkpoints_of(config.folder)[-1:]
        state = folder / "state.safetensors"
        state.write_bytes(state.read_bytes()[:-5])
        with pytest.raises(ConfigError, match=r"step-000004: is no whole checkpoint .*delete it"):
            lessons.trainer(config).run(resume=True)

    def test_a_full_disk_keeps_the_checkpoint_before(self, tmp_path):
        config = lessons.config(tmp_path, save_every=2)

        def told(news) -> None:
            if news.what == "training" and news.done == 3:
                stack.enter_context(mock.patch(
                    "flux_core.train.state.save_file", side_effect=OSError(28, "No space left")
                ))  # fmt: skip

        with ExitStack() as stack, pytest.raises(OSError, match="No space left"):
            lessons.trainer(config, told=told).run()
        assert [f.name for f in checkpoints_of(config.folder)] == ["step-000002"]
        assert not list(config.folder.rglob("*.partial"))
        assert read_checkpoint(checkpoints_of(config.folder)[0])["learner"]["step"] == 2
        whole = lessons.trainer(replace(config, name="whole"))
        whole.run()
        again = lessons.trainer(config)
        again.run(resume=True)
        assert torch.equal(lessons.parameters(again), lessons.parameters(whole))

    def test_old_checkpoints_go(self, tmp_path):
        config = lessons.config(tmp_path, save_every=1, keep=2)
        lessons.trainer(config).run()
        assert [f.name for f in checkpoints_of(config.folder)] == ["step-000003", "step-000004"]


class TestOffload:
    @pytest.fixture
    def card(self):
        with ExitStack() as stack:
            stack.enter_context(
                mock.patch("flux_core.offload.host_weights.needs_copy", lambda *_: True)
            )
            stack.enter_context(
                mock.patch("flux_core.offload.runner.has_own_memory", lambda *_: True)
            )
            yield

    def test_every_policy_trains_the_same_lora(self, tmp_path, card):
        found = {}
        for mode in ("none", "component", "stream"):
            for on_host in (False, True):
                offload = OffloadConfig(mode, activations_on_host=on_host)
                config = full(tmp_path, name=f"{mode}-{on_host}", offload=offload, steps=3)
                run = lessons.trainer(config)
                done = run.run()
                part = done.report.parts["training"]
                assert bool(part.streamed) == (mode == "stream")
                found[config.name] = lessons.parameters(run), done.samples[0]
        first = found.pop("none-False")
        for parameters, picture in found.values():
            assert torch.equal(parameters, first[0]) and torch.equal(picture, first[1])

    def test_memory_that_runs_out_is_planned_again_once(self, tmp_path, card, caplog):
        config = lessons.config(tmp_path, name="plain")
        plain = lessons.trainer(config)
        plain.run()
        run = lessons.trainer(replace(config, name="short"))
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
        assert torch.equal(lessons.parameters(run), lessons.parameters(plain))
        twice = lessons.trainer(replace(config, name="twice"))
        twice.learner.losses = mock.Mock(side_effect=torch.OutOfMemoryError("injected"))
        with pytest.raises(torch.OutOfMemoryError):
            twice.run()


class TestLearning:
    def test_losses_fall_and_the_model_is_as_it_was(self, tmp_path):
        config = full(
            tmp_path, steps=60, lora=LoraConfig(rank=8), batch=4, save_every=0,
            optimizer=OptimizerConfig(learning_rate=3e-3),
            validation=ValidationConfig(every=30, levels=4), samples=SamplesConfig(),
        )  # fmt: skip
        transformer = lessons.parts().transformer
        before = {name: t.clone() for name, t in transformer.state_dict().items()}
        run = lessons.trainer(config)
        done = run.run()
        first = sum(done.history.losses[:15]) / 15
        assert sum(done.history.losses[-15:]) / 15 < 0.8 * first
        after = transformer.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], t) for name, t in before.items())
        rows = (config.folder / "history.csv").read_text().splitlines()
        assert len(rows) == 61 and rows[0].startswith("step,loss")
        with Image.open(config.folder / "loss.png") as picture:
            assert picture.size == (800, 400)

    def test_a_loss_that_is_no_number_stops_the_run(self, tmp_path):
        run = lessons.trainer(lessons.config(tmp_path))
        real = run.learner.losses
        run.learner.losses = lambda *args: real(*args) * (float("nan") if run.step == 2 else 1)
        with pytest.raises(FloatingPointError, match="the loss is nan at step 3"):
            run.run()
        assert checkpoints_of(run.config.folder)[-1].name == "step-000002"

    def test_what_an_optimizer_needs_is_said(self, tmp_path):
        for name, package in (("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")):
            config = lessons.config(tmp_path, optimizer=OptimizerConfig(name))
            with (
                mock.patch.dict(sys.modules, {package: None}),
                pytest.raises(ModuleNotFoundError, match=f"pip install {package}"),
            ):
                lessons.trainer(config)

    def test_samples_and_the_running_mean(self, tmp_path):
        config = full(tmp_path)
        run = lessons.trainer(config)
        done = run.run()
        names = sorted(p.name for p in (config.folder / "samples").iterdir())
        assert names == [f"step-{n:06}-0.png" for n in (0, 2, 4, 6)]
        assert done.samples[0].shape == (64, 64, 3)
        means = run.learner.average.means
        with safe_open(done.files[1], "pt") as file:
            name = f"lora_unet_{run.learner.lora.names[0].replace('.', '_')}.lora_down.weight"
            written = file.get_tensor(name)
            assert torch.equal(written, means[0].bfloat16())
            about = file.metadata()
        assert about["fluxfit.step"] == "6" and about["ss_network_dim"] == "4"
        assert len(about["fluxfit.base"]) == 64
        assert json.loads(about["fluxfit.config"])["lora"]["rank"] == 4


class TestFiles:
    @pytest.mark.parametrize("format", ["diffusers", "kohya"])
    def test_what_is_written_does_what_was_trained(self, format, tmp_path):
        model = load_transformer(
            tiny.save(tiny.diffusers_transformer().state_dict(), tmp_path / "m.safetensors"),
            precision="fp32",
        )
        names = ("attention", "mlp", "modulation", r"final_layer\..*", "img_in")
        lora = TrainedLora(model, names, 3, 6.0)
        for branch in lora.layer_branches:
            torch.nn.init.normal_(branch.up, 0, 0.05)
        path = tmp_path / "lora.safetensors"
        save_lora(model, lora.factors(), path, alpha=6.0, format=format, dtype=torch.float32)
        kwargs = tiny.inputs()
        with torch.no_grad():
            with lora.on(model):
                expected = model(**kwargs)
            plain = model(**kwargs)
            assert tiny.relative(plain, expected) > 1e-2
            opened = load_lora(path)
            found = match_lora(opened, model)
            assert not found.unmatched and not found.refused
            with lora_applied(model, [(opened, 1.0)]):
                assert tiny.relative(model(**kwargs), expected) < 1e-5

    def test_diffusers_opens_it_with_the_same_effect(self, tmp_path):
        theirs = tiny.diffusers_transformer()
        model = load_transformer(
            tiny.save(theirs.state_dict(), tmp_path / "m.safetensors"), precision="fp32"
        )
        lora = TrainedLora(model, ("attention", "mlp", "modulation", r"final_layer\..*"), 3, 6.0)
        for branch in lora.layer_branches:
            torch.nn.init.normal_(branch.up, 0, 0.05)
        path = save_lora(
            model, lora.factors(), tmp_path / "lora.safetensors", alpha=6.0, dtype=torch.float32
        )
        from diffusers import FluxPipeline

        state = FluxPipeline.lora_state_dict(path)
        theirs.load_lora_adapter(state, prefix="transformer")
        kwargs = tiny.inputs()
        with torch.no_grad():
            made = theirs(**tiny.to_diffusers(kwargs), return_dict=False)[0]
            with lora.on(model):
                assert tiny.relative(made, model(**kwargs)) < 1e-5


WORKER = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from tests import training_runs as lessons
out, batch = Path(sys.argv[1]), int(sys.argv[2])
config = lessons.config(Path(sys.argv[3]), name=out.name, batch=batch, steps=3)
run = lessons.trainer(config, "fp32")
done = run.run()
assert bool(done.files) == run.workers.main
if run.workers.main:
    torch.save([lessons.parameters(run), done.history.losses, run.workers.count], out)
"""


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    lessons.config(tmp_path)  # draws the pictures: five, so that a batch is shared unevenly
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    found = []
    for count, batch in ((1, 4), (2, 2)):
        out = tmp_path / f"by-{count}"
        launch = ["-m", "torch.distributed.run", f"--nproc-per-node={count}",
                  "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]  # fmt: skip
        done = subprocess.run(
            [sys.executable, *launch, str(script), str(out), str(batch), str(tmp_path)],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(torch.load(out))
    (one, one_losses, alone), (two, two_losses, both) = found
    assert (alone, both) == (1, 2)
    assert one_losses == pytest.approx(two_losses, rel=1e-5)
    assert tiny.relative(two, one) < 1e-3


def test_residency_of_the_host_is_used(tmp_path):
    runner = OffloadRunner(None, "cpu")
    done = lessons.trainer(lessons.config(tmp_path, steps=1), runner=runner).run()
    assert done.report is runner.report and "training" in runner.report.parts
