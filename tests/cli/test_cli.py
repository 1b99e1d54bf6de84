"""The command line as a whole."""

from __future__ import annotations

import pytest

from tests.cli.command_line import call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nothing.json"), "nothing.json: no such file"),
        (("inspect", "nothing.safetensors"), "nothing.safetensors: no such file"),
        (("generate", "x", "--width", "100"), "width is 100, expected a multiple of 16"),
        (("generate", "x", "--offload", "fast"), "'fast', expected one of auto, none"),
        (("plan", "--vram", "-1"), "vram is -1.0, expected 0.001 to"),
        (("plan", "--vram", "8", "--link", "0"), "link is 0.0, expected 0.001 to"),
        (("generate", "x", "--precision", "int4"), "'int4', expected one of bf16"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments, message, tmp_path):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
