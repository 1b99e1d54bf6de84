"""The host's own FLUX.1 graphs with our loader in the place of theirs: the same pictures.

Weights have the widths of the real ones and random numbers; a page of the host turns its templates
to what it queues. On a CPU the host computes in float32 whatever a file holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.browser.editor import Editor
from tests.host.prompts import drawn
from tests.host_server import Server, host_templates
from tests.host_templates.graphs import Prompt, needed, smaller, swapped, with_our_transformer

TEMPLATES = (
    "flux_dev_full_text_to_image",
    "flux_dev_checkpoint_example",
    "flux_schnell_full_text_to_image",
    "flux_schnell",
    "flux1_krea_dev",
    "flux_fill_inpaint_example",
    "flux_fill_outpaint_example",
    "image_flux.1_fill_dev_OneReward",
    "flux_canny_model_example",
    "flux_depth_lora_example",
    "flux_redux_model_example",
    "flux_kontext_dev_basic",
    "flux1_dev_uso_reference_image_gen",
)
#: Other random numbers: what its picture is apart says how much of a transformer is seen.
OTHER = "flux1-schnell.safetensors"
POLICIES = ("none", "component", "stream", "auto")


@pytest.fixture(scope="session")
def templates() -> dict[str, Path]:
    return host_templates()


def photograph(path: Path) -> None:
    """A picture with a hole, as templates for inpainting have it."""
    rows, columns = np.mgrid[0:192, 0:192] / 192
    waves = np.stack([rows, columns, 0.5 + 0.5 * np.sin(20 * rows * columns)], -1)
    picture = Image.fromarray((255 * waves).astype(np.uint8)).convert("RGBA")
    hole = Image.new("L", picture.size, 255)
    ImageDraw.Draw(hole).ellipse((60, 60, 130, 130), fill=0)
    picture.putalpha(hole)
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture.convert("RGB") if path.suffix == ".jpg" else picture).save(path)


def queued(name: str, page: Editor, templates: dict[str, Path]) -> Prompt:
    """What the page would queue of a template, made small."""
    if name not in templates:
        pytest.skip(f"this host has no template {name}")
    workflow: dict[str, Any] = json.loads(templates[name].read_text("utf-8"))
    page.clear()
    page.load(workflow)
    prompt = page.page.evaluate("async () => (await app.graphToPrompt()).output")
    for item in prompt.values():
        if item["class_type"] == "LoadImage":
            photograph(page.server.base / "input" / item["inputs"]["image"])
    return smaller(needed(prompt))


def difference(a: np.ndarray, b: np.ndarray) -> tuple[int, float]:
    """The largest and the mean difference of two pictures, in levels of 255."""
    assert a.shape == b.shape
    apart = np.abs(a - b)
    return int(apart.max()), float(apart.mean())


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_with_our_loader_draws_its_picture(
    name: str, wide_server: Server, page_of_all: Editor, templates: dict[str, Path]
):
    stock = queued(name, page_of_all, templates)
    picture = drawn(wide_server, stock)
    assert picture.std() > 8, "a flat picture would prove nothing"
    rows = {"all parts, bf16": (swapped(stock), 25, 1.2)}
    if any(item["class_type"] == "UNETLoader" for item in stock.values()):
        rows = {  # encoded by the host, whose encodings it still has from the picture before
            "transformer, fp32": (with_our_transformer(stock, precision="fp32"), 2, 0.1),
            "transformer, bf16": (with_our_transformer(stock), 8, 0.5),
        } | rows
        if any(v["inputs"].get("unet_name") == "flux1-dev.safetensors" for v in stock.values()):
            other = drawn(wide_server, with_our_transformer(stock, transformer=OTHER))
            apart = difference(other, picture)
            print(f"{name}, another transformer: largest {apart[0]}, mean {apart[1]:.3f}")
            assert apart[1] > 1.5, "the transformer's numbers are not seen"
    for row, (prompt, most, mean) in rows.items():
        apart = difference(drawn(wide_server, prompt), picture)
        print(f"{name}, {row}: largest {apart[0]}, mean {apart[1]:.3f}")
        assert apart[0] <= most and apart[1] <= mean, f"{row}: {apart}"


def test_every_policy_draws_the_same_bits(
    wide_server: Server, page_of_all: Editor, templates: dict[str, Path]
):
    stock = queued(TEMPLATES[0], page_of_all, templates)
    prompt = swapped(stock, transformer_precision="fp8_scaled", policy=["policy", 0])
    pictures = []
    for mode in POLICIES:
        inputs = wide_server.get("/object_info/OffloadPolicy")["OffloadPolicy"]["input"]
        values = {k: v[1]["default"] for k, v in inputs["required"].items() if "default" in v[1]}
        prompt["policy"] = {"class_type": "OffloadPolicy", "inputs": values | {"mode": mode}}
        pictures.append(drawn(wide_server, prompt))
    assert all(np.array_equal(picture, pictures[0]) for picture in pictures)
