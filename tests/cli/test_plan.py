"""`plan`."""

from __future__ import annotations

from tests.cli.command_line import call


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


def test_other_models_are_planned_by_name(tmp_path):
    """Chroma has no CLIP-L and no modulations, which are a quarter of dev's weights."""
    asked = ("--vram", "24", "--precision", "bf16", "--steps", "4")
    dev, chroma, lite = (
        call("plan", "--model", name, *asked, cwd=tmp_path).stdout.splitlines()
        for name in ("FLUX.1-dev", "Chroma", "FLUX.1-lite")
    )
    assert chroma[0].startswith("Chroma in bf16") and "57 of 57 blocks stay" in chroma[1]
    assert "of 57 blocks stay" in dev[1] and "46 of 46 blocks stay" in lite[1]
    done = call("plan", "--model", "Sana", cwd=tmp_path)
    assert done.returncode and "'Sana', expected one of FLUX.1-dev, FLUX.1-schnell" in done.stderr


def test_a_picture_has_as_many_steps_as_its_model_is_published_with(tmp_path):
    names = {"FLUX.1-schnell": 4, "FLUX.2-klein-4B": 4, "FLUX.2-dev": 28, "Chroma": 28}
    for name, steps in names.items():
        done = call("plan", "--model", name, "--vram", "24", cwd=tmp_path)
        assert done.stdout.splitlines()[0].endswith(f", {steps} steps")
    done = call("plan", "--model", "FLUX.1-schnell", "--steps", "8", cwd=tmp_path)
    assert done.stdout.splitlines()[0].endswith(", 8 steps")
