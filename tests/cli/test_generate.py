"""`generate`."""

from __future__ import annotations

from tests.cli.command_line import call_apart


def test_generate_writes_a_picture(tmp_path):
    done = call_apart(
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
