"""The command line, as a person calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
POCKET = ROOT / "assets" / "pocket"


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_run_prints_the_picture_the_time_and_the_memory(tmp_path):
    workflow = ROOT / "workflows" / "text_to_image.json"
    done = call("run", str(workflow), "--set", "FluxSampler.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for part in ("text encoders", "transformer", "VAE decoder"):
        assert any(line.startswith(part) and "MiB" in line for line in lines)
    (picture,) = (line.removeprefix("picture: ") for line in lines if line.startswith("picture: "))
    assert Path(picture).is_relative_to(tmp_path / "output") and Path(picture).is_file()
    assert any(line.startswith("took ") for line in lines)


def test_generate_writes_a_picture(tmp_path):
    done = call(
        "generate",
        "a blue square on white",
        "--steps",
        "2",
        "--width",
        "64",
        "--height",
        "64",
        "--precision",
        "fp8_scaled",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "output").glob("generate_*.png"))) == 1


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("diffusion_models/fluxfit_pocket.safetensors", "transformer (native layout)"),
        ("controlnet/fluxfit_pocket_upscaler.safetensors", "controlnet (native layout)"),
        ("vae/fluxfit_pocket_vae.safetensors", "vae (native layout)"),
        ("text_encoders/fluxfit_pocket_clip_l.safetensors", "clip_l (native layout)"),
        ("text_encoders/fluxfit_pocket_t5.safetensors", "t5 (native layout)"),
    ],
)
def test_inspect_tells_every_part_of_the_pocket_model(file, kind, tmp_path):
    done = call("inspect", str(POCKET / file), cwd=tmp_path)
    assert done.returncode == 0 and kind in done.stdout and "bfloat16" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing.json"), "nothing.json: no such file"),
        (("inspect", "nothing.safetensors"), "nothing.safetensors: no such file"),
        (("generate", "x", "--width", "100"), "width is 100, expected a multiple of 16"),
        (("generate", "x", "--offload", "fast"), "'fast', expected one of auto, none"),
        (("plan", "--vram", "-1"), "vram is -1.0, expected more than 0"),
        (("plan", "--vram", "8", "--link", "0"), "link is 0.0, expected more than 0"),
        (("generate", "x", "--precision", "int4"), "'int4', expected one of bf16"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments, message, tmp_path):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_plan_tells_what_a_card_will_do(tmp_path):
    done = call("plan", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7 and "18 of 57 blocks stay" in lines[1] and "57 of 57" in lines[-1]
    assert all(" GB, " in line and " s a picture" in line for line in lines[1:])
    done = call("plan", "--vram", "1.5", "--ram", "2", cwd=tmp_path)
    assert "does not fit: it needs 1." in done.stdout
    asked = ("--vram", "8", "--ram", "16", "--link", "12.5", "--tflops", "70")
    done = call("plan", *asked, "--width", "1024", "--height", "1024", cwd=tmp_path)
    assert "GB streamed a step" in done.stdout and "peak 7." in done.stdout
