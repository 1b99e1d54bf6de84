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
        (("generate", "x", "--out", __file__), "is a file, expected a folder"),
        (("generate", "(cat:1e30)", "--width", "64"), "a weight of 1e+30, expected -1000"),
        (("generate", "x", "--seed", "1" + 400 * "0"), "expected 0 to 1.84467e+19"),
        (("plan", "--steps", "1" + 400 * "0"), "expected 1 to 10000"),
        (("plan", "--width", "16" + 400 * "0"), "expected at most 16384"),
        (("quantize", "x", "--out", "q.gguf"), "expected the name of a .safetensors file"),
        (("merge", "x", "--lora", "a=b", "--out", "m.sft"), "strength is 'b', not a number"),
        (("merge", "x", "--lora", "a=nan", "--out", "m.sft"), "strength is nan"),
        (("merge", "x", "--lora", "a", "--out", "."), "expected the name of a .safetensors"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments, message, tmp_path):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == (3 if "no such file" in message else 2)
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
