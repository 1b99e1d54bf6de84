"""Pictures that the host saves carry receipts, and are drawn again from them without it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flux_core.receipts import KEY, Receipt, pixels_hash, read_png_texts
from tests.host.prompts import api, key_of
from tests.host_server import ROOT, Server

PARTS = {"text encoders", "transformer", "VAE decoder"}


def small(name: str) -> dict:
    prompt = api(name)
    for item in prompt.values():
        if "steps" in item["inputs"]:
            item["inputs"]["steps"] = 2
    return prompt


def receipt_of(path: Path) -> Receipt:
    pixels, texts = read_png_texts(path)
    receipt = Receipt.parse(texts[KEY])
    decoded = [h for entry in receipt.did for h in entry.get("pixels", ())]
    assert pixels_hash(pixels) in decoded
    return receipt


@pytest.mark.parametrize("name", ["text_to_image", "swap_the_loader"])
def test_pictures_carry_receipts_and_are_drawn_again(server: Server, name: str):
    prompt = small(name)
    path = server.pictures(server.run(prompt))[-1]
    receipt = receipt_of(path)
    assert {e["part"] for e in receipt.did if e["kind"] == "ran"} >= PARTS - {"text encoders"}
    (drawn,) = [entry for entry in receipt.did if entry["kind"] == "draw"]
    assert drawn["sigmas"] and drawn["width"] == 256 and len(receipt.files) >= 2
    assert all(len(file["sha256"]) == 64 for file in receipt.files.values())
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    done = subprocess.run(
        [python, str(ROOT), "replay", str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"FLUXFIT_MODELS": str(server.base / "models"), "OMP_NUM_THREADS": "1"},
    )
    if name == "text_to_image":
        assert done.returncode == 0 and "same bits" in done.stdout, done.stdout + done.stderr
    else:  # the host's own sampler rounds otherwise
        assert "at most" in done.stdout or "same bits" in done.stdout, done.stderr


def test_a_picture_whose_sampler_did_not_run_again_says_the_same(server: Server):
    prompt = small("text_to_image")
    prompt[key_of(prompt, "FluxSampler")]["inputs"]["seed"] = 21
    first = receipt_of(server.pictures(server.run(prompt))[-1])
    again = copy.deepcopy(prompt)
    again[key_of(again, "SaveImage")]["inputs"]["filename_prefix"] = "elsewhere"
    second = receipt_of(server.pictures(server.run(again))[-1])
    drawn = [[e for e in r.did if e["kind"] == "draw"] for r in (first, second)]
    assert drawn[0] == drawn[1] and drawn[0][0]["seed"] == 21
