"""FluxFit inside a real ComfyUI: it loads, its workflows run, stock nodes fit its wires."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fluxfit.flux_core import FluxPipeline
from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless
from PIL import Image

from tests import tiny
from tests.flux_core.test_control_lora import control_file

ROOT = Path(__file__).resolve().parents[2]


def api(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text())


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def key_of(prompt: dict[str, Any], class_type: str) -> str:
    return next(k for k, v in prompt.items() if v["class_type"] == class_type)


def version(server) -> tuple[int, ...]:
    text = server.get("/system_stats")["system"]["comfyui_version"]
    return tuple(int(part) for part in text.split(".")[:2])


def test_the_folder_imports_without_a_warning(server):
    lines = server.log.read_text().splitlines()
    about_us = [line.lower() for line in lines if "fluxfit" in line.lower()]
    assert [line for line in about_us if "seconds: " in line], "the host did not load the folder"
    assert not [line for line in about_us if "failed" in line or "warn" in line or "error" in line]


def test_every_node_shows_with_its_help(server):
    info = server.get("/object_info")
    for name in NODE_CLASS_MAPPINGS:
        assert info[name]["category"].startswith("FluxFit") and info[name]["description"]


@pytest.mark.parametrize("name", ["text_to_image", "upscale", "compare_precisions"])
def test_pocket_workflows_give_the_headless_picture(name, server, tmp_path, monkeypatch):
    here = server.pictures(server.run(api(name)))
    monkeypatch.chdir(tmp_path)
    alone = headless.saved_images(headless.run(headless.from_api(api(name))))
    assert len(here) == len(alone) > 0
    for mine, theirs in zip(alone, here, strict=True):
        # the host's ImageBlur adds in another order than its stand-in: a rounding in bfloat16
        assert np.abs(pixels(mine) - pixels(theirs)).max() <= (4 if name == "upscale" else 1)


def test_stock_vae_nodes_work_on_our_vae(server):
    prompt = api("text_to_image")
    loader, decode = key_of(prompt, "FluxLoaderFP8"), key_of(prompt, "VAEDecode")
    prompt["90"] = {
        "class_type": "VAEEncode", "inputs": {"pixels": [decode, 0], "vae": [loader, 2]},
    }  # fmt: skip
    prompt["91"] = {
        "class_type": "VAEDecodeTiled",
        "inputs": {"samples": ["90", 0], "vae": [loader, 2], "tile_size": 128, "overlap": 32,
                   "temporal_size": 64, "temporal_overlap": 8},
    }  # fmt: skip
    prompt["92"] = {
        "class_type": "SaveImage", "inputs": {"images": ["91", 0], "filename_prefix": "tiled"},
    }  # fmt: skip
    whole, tiled = server.pictures(server.run(prompt))
    assert np.abs(pixels(whole) - pixels(tiled)).mean() < 12


def with_stock_sampler(sampler: str, scheduler: str) -> dict[str, Any]:
    """The text-to-image graph with the host's own loader and KSampler instead of ours."""
    prompt = api("text_to_image")
    ours = key_of(prompt, "FluxSampler")
    inputs = prompt[ours]["inputs"]
    prompt["80"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "fluxfit_pocket.safetensors", "weight_dtype": "default"},
    }
    prompt["81"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": ["80", 0], "positive": inputs["positive"], "negative": inputs["negative"],
            "latent_image": inputs["latent"], "seed": inputs["seed"], "steps": inputs["steps"],
            "cfg": inputs["cfg"], "sampler_name": sampler, "scheduler": scheduler, "denoise": 1.0,
        },
    }  # fmt: skip
    prompt[key_of(prompt, "VAEDecode")]["inputs"]["samples"] = ["81", 0]
    return prompt


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("euler", "simple"), ("heun", "beta"), ("dpmpp_2m", "sgm_uniform"),
     ("euler_ancestral", "normal")],
)  # fmt: skip
def test_the_host_s_own_loader_and_sampler_give_our_picture(sampler, scheduler, server):
    if version(server) < (0, 21):
        pytest.skip("hosts before 0.21 open FLUX.1 at its full width only")
    stock = with_stock_sampler(sampler, scheduler)
    ours = copy.deepcopy(api("text_to_image"))
    loader = ours[key_of(ours, "FluxLoaderFP8")]["inputs"]
    loader["transformer_precision"] = "fp32"
    ours[key_of(ours, "FluxSampler")]["inputs"] |= {
        "sampler": sampler, "scheduler": scheduler, "shift": "host",
    }  # fmt: skip
    (a,), (b,) = (server.pictures(server.run(p)) for p in (stock, ours))
    difference = np.abs(pixels(a) - pixels(b))
    assert difference.mean() < 1.5, f"mean difference {difference.mean():.2f} of 255"


@pytest.mark.parametrize("precision", ["fp8_e4m3fn", "fp8_e5m2", "fp8_scaled", "int8"])
def test_the_host_opens_what_we_save(precision, server):
    """Saved by our node, drawn by the host's loader and KSampler: our picture at that precision."""
    if version(server) < (0, 21):
        pytest.skip("hosts before 0.21 open FLUX.1 at its full width only")
    formats = (Path(os.environ["COMFYUI_PATH"]) / "comfy" / "quant_ops.py").read_text()
    if precision == "int8" and "int8_tensorwise" not in formats:
        pytest.skip("this host does not know int8 yet")
    ours = api("text_to_image")
    loader, sampler = key_of(ours, "FluxLoaderFP8"), key_of(ours, "FluxSampler")
    ours[loader]["inputs"]["transformer_precision"] = precision
    ours[sampler]["inputs"]["shift"] = "host"
    ours["95"] = {
        "class_type": "FluxSaveQuantized",
        "inputs": {"name": f"saved_{precision}", "overwrite": True, "model": [loader, 0]},
    }
    (a,) = server.pictures(server.run(ours))
    stock = with_stock_sampler("euler", "simple")
    stock["80"]["inputs"]["unet_name"] = f"saved_{precision}.safetensors"
    (b,) = server.pictures(server.run(stock))
    difference = np.abs(pixels(a) - pixels(b))
    assert difference.mean() < 1.5, f"mean difference {difference.mean():.2f} of 255"


def test_the_host_opens_a_controlnet_that_we_save(server):
    if version(server) < (0, 21):
        pytest.skip("hosts before 0.21 open FLUX.1 at its full width only")
    ours = api("upscale")
    upscaler, redraw = key_of(ours, "ControlNetUpscalerFP8"), ours["12"]["inputs"]
    ours[upscaler]["inputs"]["precision"] = "fp8_e4m3fn"
    redraw["shift"] = "host"
    ours["95"] = {
        "class_type": "FluxSaveQuantized",
        "inputs": {"name": "saved", "overwrite": True, "control": [upscaler, 0]},
    }
    expected = server.pictures(server.run(ours))[-1]
    models = server.base / "models" / "controlnet"
    models.mkdir(parents=True, exist_ok=True)
    saved = server.base / "output" / "controlnet" / "saved_controlnet.safetensors"
    shutil.copy(saved, models / "saved.safetensors")
    stock = api("upscale")
    loader = key_of(stock, "FluxLoaderFP8")
    stock["80"] = {
        "class_type": "UNETLoader",
        "inputs": {"unet_name": "fluxfit_pocket.safetensors", "weight_dtype": "default"},
    }
    stock["81"] = {
        "class_type": "ControlNetLoader", "inputs": {"control_net_name": "saved.safetensors"},
    }  # fmt: skip
    stock["82"] = {
        "class_type": "ControlNetApplyAdvanced",
        "inputs": {
            "positive": redraw["positive"], "negative": redraw["positive"],
            "control_net": ["81", 0], "image": [upscaler, 2], "vae": [loader, 2],
            "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0,
        },
    }  # fmt: skip
    stock["12"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": ["80", 0], "positive": ["82", 0], "negative": ["82", 1],
            "latent_image": redraw["latent"], "seed": redraw["seed"], "steps": redraw["steps"],
            "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0,
        },
    }  # fmt: skip
    found = server.pictures(server.run(stock))[-1]
    difference = np.abs(pixels(found) - pixels(expected))
    assert difference.mean() < 2, f"mean difference {difference.mean():.2f} of 255"


def test_an_interrupt_stops_the_run_and_the_next_one_is_whole(server):
    before = pixels(server.pictures(server.run(api("text_to_image")))[0])
    long = api("text_to_image")
    long[key_of(long, "FluxSampler")]["inputs"]["steps"] = 900

    def stop():
        time.sleep(3)
        request = urllib.request.Request(f"{server.address}/interrupt", b"{}", method="POST")
        urllib.request.urlopen(request, timeout=30).close()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Exception, match="execution_interrupted"):
        server.run(long)
    thread.join()
    after = pixels(server.pictures(server.run(api("text_to_image")))[0])
    assert np.array_equal(before, after)


def test_parts_and_the_host_s_models_give_each_other_room(tmp_path):
    script = Path(__file__).with_name("memory_manager.py")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(script), os.environ["COMFYUI_PATH"], str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stderr[-3000:]


def test_unload_is_answered_and_the_next_picture_is_the_same(server):
    before = pixels(server.pictures(server.run(api("text_to_image")))[0])
    body = json.dumps({"unload_models": True, "free_memory": True}).encode()
    request = urllib.request.Request(
        f"{server.address}/free", body, {"Content-Type": "application/json"}, method="POST"
    )
    urllib.request.urlopen(request, timeout=30).close()
    after = pixels(server.pictures(server.run(api("text_to_image")))[0])
    assert np.array_equal(before, after)


def test_the_memory_report_is_drawn(server):
    prompt = api("text_to_image")
    policy, decode = key_of(prompt, "OffloadPolicy"), key_of(prompt, "VAEDecode")
    prompt[policy]["inputs"]["slots"] = 3  # else it is known from before, and shows nothing anew
    prompt["90"] = {"class_type": "FluxMemoryReport", "inputs": {"image": [decode, 0]}}
    prompt["91"] = {
        "class_type": "SaveImage", "inputs": {"images": ["90", 1], "filename_prefix": "timeline"},
    }  # fmt: skip
    entry = server.run(prompt)
    drawn = pixels(server.pictures(entry)[-1])
    assert drawn.shape == (560, 1000, 3) and drawn.std() > 20
    assert "transformer" in entry["outputs"]["90"]["text"][0]
    said = entry["outputs"][policy]["text"][0]
    assert "FLUX.1-dev" in said and "peak" in said


def test_a_lora_does_what_the_host_s_own_loader_makes_of_it(server):
    if version(server) < (0, 21):
        pytest.skip("hosts before 0.21 open FLUX.1 at its full width only")
    pipeline = FluxPipeline.from_pocket(precision="fp32")
    generator = torch.Generator().manual_seed(0)
    file = {}
    for name, layer in pipeline.transformer.named_modules():
        if isinstance(layer, torch.nn.Linear):
            key = f"lora_unet_{name.replace('.', '_')}"
            down = torch.randn(4, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, 4, generator=generator)
            file |= {f"{key}.lora_down.weight": 0.1 * down, f"{key}.lora_up.weight": 0.3 * up,
                     f"{key}.alpha": torch.tensor(2.0)}  # fmt: skip
    tiny.save(file, server.base / "models" / "loras" / "strong.safetensors")
    ours = copy.deepcopy(api("text_to_image"))
    loader, sampler = key_of(ours, "FluxLoaderFP8"), key_of(ours, "FluxSampler")
    ours[loader]["inputs"]["transformer_precision"] = "fp32"
    ours[sampler]["inputs"]["shift"] = "host"
    plain = pixels(server.pictures(server.run(ours))[0])
    ours["96"] = {
        "class_type": "FluxLoraLoader",
        "inputs": {"model": [loader, 0], "lora": "strong.safetensors", "strength": 0.9,
                   "strength_text": 1.0, "on": True},
    }  # fmt: skip
    ours[sampler]["inputs"]["model"] = ["96", 0]
    stock = with_stock_sampler("euler", "simple")
    stock["82"] = {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"model": ["80", 0], "lora_name": "strong.safetensors", "strength_model": 0.9},
    }
    stock["81"]["inputs"]["model"] = ["82", 0]
    a, b = (pixels(server.pictures(server.run(p))[0]) for p in (ours, stock))
    off, moved = np.abs(a - b).mean(), np.abs(a - plain).mean()
    assert off < 1.5 and moved > 10 * off, f"off by {off:.2f} of 255, moved by {moved:.2f}"


def test_a_control_lora_reads_the_picture_of_the_stock_conditioning(server):
    if version(server) < (0, 21):
        pytest.skip("hosts before 0.21 open FLUX.1 at its full width only")
    file = control_file(FluxPipeline.from_pocket(precision="fp32").transformer)
    file = {name: t if name.endswith(".scale") else 0.3 * t for name, t in file.items()}
    file["img_in.lora_A.weight"][:, 64:] *= 30  # so that the picture shows
    tiny.save(file, server.base / "models" / "loras" / "control.safetensors")
    ours = copy.deepcopy(api("text_to_image"))
    loader, sampler = key_of(ours, "FluxLoaderFP8"), key_of(ours, "FluxSampler")
    inputs = ours[sampler]["inputs"]
    stock = with_stock_sampler("euler", "simple")
    settings = {"positive": ["71", 0], "negative": ["71", 1], "steps": 4}
    pictures = []
    for shade in (0, 0xFFFFFF):
        read = {
            "70": {"class_type": "EmptyImage",
                   "inputs": {"width": 256, "height": 256, "batch_size": 1, "color": shade}},
            "71": {"class_type": "InstructPixToPixConditioning",
                   "inputs": {"positive": inputs["positive"], "negative": inputs["negative"],
                              "vae": [loader, 2], "pixels": ["70", 0]}},
        }  # fmt: skip
        mine, theirs = copy.deepcopy(ours) | read, copy.deepcopy(stock) | read
        mine[loader]["inputs"]["transformer_precision"] = "fp32"
        mine["96"] = {
            "class_type": "FluxLoraLoader",
            "inputs": {"model": [loader, 0], "lora": "control.safetensors", "strength": 1.0,
                       "strength_text": 1.0, "on": True},
        }  # fmt: skip
        mine[sampler]["inputs"] |= settings | {"model": ["96", 0], "shift": "host"}
        theirs["82"] = {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["80", 0], "lora_name": "control.safetensors",
                       "strength_model": 1.0},
        }  # fmt: skip
        theirs["81"]["inputs"] |= settings | {"model": ["82", 0]}
        pictures.append([pixels(server.pictures(server.run(p))[0]) for p in (mine, theirs)])
    (dark, _), (light, _) = pictures
    off = max(np.abs(a - b).mean() for a, b in pictures)
    moved = np.abs(dark - light).mean()
    # the host holds what it patched in bfloat16
    assert moved > 2 and off < moved / 4, f"off by {off:.2f} of 255, moved by {moved:.2f}"


def lesson(name: str, steps: int) -> dict[str, Any]:
    """The training graph, short, and the pictures drawn as the stock sampler draws them."""
    prompt = api("train_lora")
    prompt[key_of(prompt, "FluxLoaderFP8")]["inputs"]["transformer_precision"] = "fp32"
    prompt[key_of(prompt, "FluxTrainSettings")]["inputs"] |= {"steps": steps, "batch": 1}
    prompt[key_of(prompt, "FluxTrainLora")]["inputs"] |= {
        "name": name, "sample_every": 0, "sample_steps": 2,
    }  # fmt: skip
    return prompt


def test_a_lora_is_trained_in_the_graph_and_opens_in_the_host_s_own_loader(server):
    prompt = lesson("short", 30)
    train = key_of(prompt, "FluxTrainLora")
    said = server.run(prompt)["outputs"][train]["text"][0]
    path = server.base / "output" / "loras" / "short.safetensors"
    assert str(path) in said and "30 steps" in said and path.is_file()
    if version(server) < (0, 21):
        return
    run = server.base / "output" / "training" / "short"
    shutil.copy(run / "short_kohya.safetensors", path.with_name("kohya.safetensors"))
    ours = copy.deepcopy(api("text_to_image"))
    loader, sampler = key_of(ours, "FluxLoaderFP8"), key_of(ours, "FluxSampler")
    ours[loader]["inputs"]["transformer_precision"] = "fp32"
    ours[sampler]["inputs"]["shift"] = "host"
    plain = pixels(server.pictures(server.run(ours))[0])
    ours["96"] = {
        "class_type": "FluxLoraLoader",
        "inputs": {"model": [loader, 0], "lora": path.name, "strength": 1.0, "strength_text": 1.0,
                   "on": True},
    }  # fmt: skip
    ours[sampler]["inputs"]["model"] = ["96", 0]
    expected = pixels(server.pictures(server.run(ours))[0])
    for name in (path.name, "kohya.safetensors"):
        stock = with_stock_sampler("euler", "simple")
        stock["82"] = {
            "class_type": "LoraLoaderModelOnly",
            "inputs": {"model": ["80", 0], "lora_name": name, "strength_model": 1.0},
        }
        stock["81"]["inputs"]["model"] = ["82", 0]
        found = pixels(server.pictures(server.run(stock))[0])
        off, moved = np.abs(found - expected).mean(), np.abs(expected - plain).mean()
        assert off < 1.5 and moved > 3 * off, f"{name}: off by {off:.2f}, moved by {moved:.2f}"


def test_a_cancelled_training_goes_on_when_it_is_queued_again(server):
    whole = lesson("whole", 12)
    server.run(whole)
    long = lesson("parts", 12)
    settings = long[key_of(long, "FluxTrainSettings")]["inputs"]
    long[key_of(long, "FluxTrainLora")]["inputs"]["name"] = "parts"
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
