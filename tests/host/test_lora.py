"""LoRAs in a real ComfyUI: used, trained, and opened by the host's own loader."""

from __future__ import annotations

import copy
import shutil
import threading
import time
import urllib.request
from typing import Any

import numpy as np
import pytest
import torch

from flux_core import FluxPipeline
from tests import tiny_models
from tests.flux_core.lora.test_control_lora import control_file
from tests.host.prompts import (
    api,
    as_the_stock_sampler,
    drawn,
    key_of,
    needs_narrow_models,
    version,
    with_lora,
    with_stock_lora,
    with_stock_sampler,
)


def test_a_lora_does_what_the_host_s_own_loader_makes_of_it(server):
    needs_narrow_models(server)
    pipeline = FluxPipeline.from_pocket(precision="fp32")
    generator = torch.Generator().manual_seed(0)
    file = {}
    for name, layer in pipeline.transformer.named_modules():
        if isinstance(layer, torch.nn.Linear):
            key = f"lora_unet_{name.replace('.', '_')}"
            down = torch.randn(4, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, 4, generator=generator)
            file |= {
                f"{key}.lora_down.weight": 0.1 * down,
                f"{key}.lora_up.weight": 0.3 * up,
                f"{key}.alpha": torch.tensor(2.0),
            }
    tiny_models.save(file, server.base / "models" / "loras" / "strong.safetensors")
    plain = drawn(server, as_the_stock_sampler())
    a = drawn(server, with_lora(as_the_stock_sampler(), "strong.safetensors", 0.9))
    stock = with_stock_sampler("euler", "simple")
    b = drawn(server, with_stock_lora(stock, "strong.safetensors", 0.9))
    off, moved = np.abs(a - b).mean(), np.abs(a - plain).mean()
    assert off < 1.5 and moved > 10 * off, f"off by {off:.2f} of 255, moved by {moved:.2f}"


def test_a_control_lora_reads_the_picture_of_the_stock_conditioning(server):
    needs_narrow_models(server)
    file = control_file(FluxPipeline.from_pocket(precision="fp32").transformer)
    file = {name: t if name.endswith(".scale") else 0.3 * t for name, t in file.items()}
    file["img_in.lora_A.weight"][:, 64:] *= 30  # so that the picture shows
    tiny_models.save(file, server.base / "models" / "loras" / "control.safetensors")
    ours = with_lora(as_the_stock_sampler(), "control.safetensors")
    loader, sampler = key_of(ours, "FluxLoaderFP8"), key_of(ours, "FluxSampler")
    inputs = dict(ours[sampler]["inputs"])
    stock = with_stock_lora(with_stock_sampler("euler", "simple"), "control.safetensors")
    settings = {"positive": ["71", 0], "negative": ["71", 1], "steps": 4}
    pictures = []
    for shade in (0, 0xFFFFFF):
        read = {
            "70": {
                "class_type": "EmptyImage",
                "inputs": {"width": 256, "height": 256, "batch_size": 1, "color": shade},
            },
            "71": {
                "class_type": "InstructPixToPixConditioning",
                "inputs": {
                    "positive": inputs["positive"],
                    "negative": inputs["negative"],
                    "vae": [loader, 2],
                    "pixels": ["70", 0],
                },
            },
        }
        mine, theirs = copy.deepcopy(ours) | read, copy.deepcopy(stock) | read
        mine[sampler]["inputs"] |= settings
        theirs["81"]["inputs"] |= settings
        pictures.append([drawn(server, p) for p in (mine, theirs)])
    (dark, _), (light, _) = pictures
    off = max(np.abs(a - b).mean() for a, b in pictures)
    moved = np.abs(dark - light).mean()
    # the host holds what it patched in bfloat16
    assert moved > 2 and off < moved / 4, f"off by {off:.2f} of 255, moved by {moved:.2f}"


def lesson(name: str, steps: int) -> dict[str, Any]:
    """The training graph, short, and the pictures drawn as the stock sampler draws them."""
    prompt = api("train_lora")
    prompt[key_of(prompt, "FluxLoaderFP8")]["inputs"]["transformer_precision"] = "fp32"
    prompt[key_of(prompt, "FluxFitTrainSettings")]["inputs"] |= {"steps": steps, "batch": 1}
    prompt[key_of(prompt, "FluxFitTrainLora")]["inputs"] |= {
        "name": name,
        "sample_every": 0,
        "sample_steps": 2,
    }
    return prompt


def test_a_lora_is_trained_in_the_graph_and_opens_in_the_host_s_own_loader(server):
    prompt = lesson("short", 30)
    train = key_of(prompt, "FluxFitTrainLora")
    shown_text = server.run(prompt)["outputs"][train]["text"][0]
    path = server.base / "output" / "loras" / "short.safetensors"
    assert str(path) in shown_text and "30 steps" in shown_text and path.is_file()
    if version(server) < (0, 21):
        return
    run = server.base / "output" / "training" / "short"
    shutil.copy(run / "short_kohya.safetensors", path.with_name("kohya.safetensors"))
    plain = drawn(server, as_the_stock_sampler())
    expected = drawn(server, with_lora(as_the_stock_sampler(), path.name))
    for name in (path.name, "kohya.safetensors"):
        picture_drawn = drawn(server, with_stock_lora(with_stock_sampler("euler", "simple"), name))
        off, moved = np.abs(picture_drawn - expected).mean(), np.abs(expected - plain).mean()
        assert off < 1.5 and moved > 3 * off, f"{name}: off by {off:.2f}, moved by {moved:.2f}"


def test_a_cancelled_training_goes_on_when_it_is_queued_again(server):
    whole = lesson("whole", 12)
    server.run(whole)
    long = lesson("parts", 12)
    settings = long[key_of(long, "FluxFitTrainSettings")]["inputs"]
    long[key_of(long, "FluxFitTrainLora")]["inputs"]["name"] = "parts"
    run = server.base / "output" / "training" / "parts"

    def stop():
        while not list(run.glob("checkpoints/step-*")):
            time.sleep(0.05)
        request = urllib.request.Request(f"{server.address}/interrupt", b"{}", method="POST")
        urllib.request.urlopen(request, timeout=30).close()

    settings["save_every"] = 2
    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Exception, match="execution_interrupted"):
        server.run(long)
    thread.join()
    settings["save_every"] = 250
    server.run(long)
    rows = [
        (server.base / "output" / "training" / name / "history.csv").read_text().splitlines()
        for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 13
