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
