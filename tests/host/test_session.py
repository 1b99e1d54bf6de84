"""A session in one host: numbers change, graphs alternate; what is read, and what stays."""

from __future__ import annotations

import copy
import itertools
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.host.prompts import api, key_of, pixels, version
from tests.host.small_models import small, write_small_models
from tests.host_server import ROOT, Server, running_server

API = ROOT / "workflows" / "api"

#: What a person turns, in the order in which they do: a node, an input, its next value.
TURNED = (
    ("OffloadPolicy", "mode", "stream"),
    ("OffloadPolicy", "vram_budget", 2.0),
    ("OffloadPolicy", "slots", 3),
    ("OffloadPolicy", "ram_budget", 4.0),
    ("OffloadPolicy", "t5_mode", "component"),
    ("FluxLoaderFP8", "compute", "dequantize"),
    ("FluxLoaderFP8", "compile", False),
    ("ControlNetUpscalerFP8", "strength", 0.5),
    ("ControlNetUpscalerFP8", "end", 0.8),
    ("ControlNetUpscalerFP8", "upscale_factor", 2.0),
    ("FluxSampler", "seed", 99),
)


def short(prompt: dict) -> dict:
    """A graph whose samplers take two steps."""
    prompt = copy.deepcopy(prompt)
    for item in prompt.values():
        if "steps" in item["inputs"]:
            item["inputs"]["steps"] = 2
    return prompt


def test_numbers_that_change_no_weights_read_no_file(server: Server):
    prompt = short(api("upscale"))
    server.run(prompt)
    before = server.opened()
    assert len(set(before)) >= 5, "four parts and a ControlNet"
    for node, name, value in TURNED:
        prompt[key_of(prompt, node)]["inputs"][name] = value
        server.run(prompt)
        assert server.opened() == before, f"{node}.{name} read files"


def test_the_stock_sampler_on_our_model_follows_the_policy_without_reading(server: Server):
    prompt = short(api("swap_the_loader"))
    first = server.run(prompt)
    before = server.opened()
    drawn = [pixels(server.pictures(first)[-1])]
    for mode in ("stream", "component", "none"):
        prompt[key_of(prompt, "OffloadPolicy")]["inputs"]["mode"] = mode
        drawn.append(pixels(server.pictures(server.run(prompt))[-1]))
    assert server.opened() == before
    assert all(np.array_equal(picture, drawn[0]) for picture in drawn)


def weights_asked(prompt: dict[str, Any]) -> set[tuple[str, str]]:
    """File and precision of everything that a graph opens."""
    asked = set()
    for item in prompt.values():
        inputs = item["inputs"]
        for name, value in inputs.items():
            if isinstance(value, str) and value.endswith((".safetensors", ".gguf")):
                precision = inputs.get(f"{name}_precision", inputs.get("precision", ""))
                asked.add((value, str(precision)))
    return asked


def test_all_graphs_in_any_order_read_what_they_lack_and_leave_no_memory_behind(server: Server):
    """``FLUXFIT_PROMPTS`` prompts, half of them before memory is looked at."""
    write_small_models(server.base / "models", server.base / "input")
    graphs = {path.stem: small(api(path.stem)) for path in sorted(API.glob("*.json"))}
    del graphs["train_lora"]  # by itself, below: it reads its pictures and writes files
    order = random.Random(5)
    held: set[tuple[str, str]] = set()

    def some(count: int) -> None:
        nonlocal held
        for _ in range(count):
            name = order.choice(list(graphs))
            prompt = graphs[name]
            for item in prompt.values():
                if "seed" in item["inputs"]:
                    item["inputs"]["seed"] = order.randrange(2**32)
            before, asked = server.opened(), weights_asked(prompt)
            server.run(prompt)
            read = set(server.opened()[len(before) :])
            needed = {file for file, _ in asked - held}
            assert read <= needed, f"{name} read {read - needed} again"
            held = asked

    prompts = int(os.environ.get("FLUXFIT_PROMPTS", "40"))
    some(prompts // 2)  # caches of libraries fill
    before = server.memory()
    some(prompts - prompts // 2)
    assert server.memory() - before < 60e6


def test_training_again_leaves_no_memory_behind(server: Server):
    prompt = small(api("train_lora"))
    training = prompt[key_of(prompt, "FluxFitTrainLora")]["inputs"]
    runs = itertools.count()

    def train(count: int) -> None:
        for _ in range(count):
            training["name"] = f"run_{next(runs)}"
            server.run(prompt)

    train(2)
    before = server.memory()
    train(3)
    assert server.memory() - before < 60e6


def test_under_pressure_of_memory_a_graph_runs_and_reads_once(server: Server, tmp_path: Path):
    """The host then drops values of nodes that have run, in the midst of a graph too."""
    if version(server) < (0, 21):
        pytest.skip("this host drops nothing for want of memory")
    (tmp_path / "host").mkdir()
    prompt = short(api("swap_the_loader"))
    expected = pixels(server.pictures(server.run(prompt))[-1])
    with running_server(tmp_path / "host", "--cache-ram", "100000") as pressed:
        pressed.run(prompt)
        before = pressed.opened()
        changed = copy.deepcopy(prompt)
        changed[key_of(prompt, "KSampler")]["inputs"]["seed"] = 1
        pressed.run(changed)
        picture = pixels(pressed.pictures(pressed.run(prompt))[-1])
        assert np.array_equal(picture, expected)
        assert pressed.opened() == before, "files were read again"
