"""A session in one host: numbers change, graphs alternate; what is read, and what stays."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest

from tests.host.prompts import api, key_of, pixels
from tests.host_server import Server

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


@pytest.mark.parametrize("rounds", [12])
def test_graphs_in_any_order_leave_no_memory_behind(rounds: int, server: Server):
    graphs = [short(api(name)) for name in ("text_to_image", "swap_the_loader", "image_to_image")]
    order = random.Random(5)

    def some(count: int) -> None:
        for _ in range(count):
            prompt = order.choice(graphs)
            for item in prompt.values():
                if "seed" in item["inputs"]:
                    item["inputs"]["seed"] = order.randrange(2**32)
            server.run(prompt)

    some(rounds)  # caches of libraries fill
    before = server.memory()
    some(rounds)
    assert server.memory() - before < 60e6
