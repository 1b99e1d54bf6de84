"""`run` on a workflow."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command_line import ROOT, call_apart


def test_run_prints_the_picture_the_time_and_the_memory(tmp_path):
    workflow = ROOT / "workflows" / "text_to_image.json"
    done = call_apart("run", str(workflow), "--set", "FluxSampler.steps=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for part in ("text encoders", "transformer", "VAE decoder"):
        assert any(line.startswith(part) and "MiB" in line for line in lines)
    (picture,) = (line.removeprefix("picture: ") for line in lines if line.startswith("picture: "))
    assert Path(picture).is_relative_to(tmp_path / "output") and Path(picture).is_file()
    assert any(line.startswith("took ") for line in lines)
