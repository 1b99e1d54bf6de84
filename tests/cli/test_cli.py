"""The command line as a whole."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from tests.cli.command_line import ROOT, call


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
        (("batch", "x", "--grid", "seed=1", "--out", ""), "argument --out: is empty"),
        (("quantize", "x", "--out", ""), "argument --out: is empty"),
        (("merge", "x", "--lora", "a", "--out", "."), "expected the name of a .safetensors"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(arguments, message, tmp_path):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == (3 if "no such file" in message else 2)
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "x", "--seed", "0", "--seed", "0"),
        ("generate", "x", "--image", "a.png", "--image=b.png"),
        ("generate", "x", "--neg", "a", "--negative", "b"),
        ("batch", "w.json", "--out", "a", "--out", "b"),
        ("--models", ".", "inspect", "--models", ".", "x"),
        ("quantize", "x", "--out", "a", "--part", "t5", "--part", "t5"),
    ],
)
def test_an_option_of_one_value_stands_once(words, tmp_path):
    done = call(*words, cwd=tmp_path)
    assert done.returncode == 2 and "is given twice, expected once" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_option_of_several_values_stands_as_often_as_there_are(tmp_path):
    done = call("generate", "x", "--lora", "a=1", "--lora", "b=1", cwd=tmp_path)
    assert done.returncode == 3 and "--lora a: no such file" in done.stderr


def test_a_wrong_name_is_told_before_what_is_missing(tmp_path):
    for words in (("generate", "--nope"), ("inspect", "--nope=1"), ("generate", "--nope", "a")):
        done = call(*words, cwd=tmp_path)
        assert done.returncode == 2 and "unrecognized arguments: --nope" in done.stderr
    done = call("inspect", "--", "--nope", cwd=tmp_path)
    assert done.returncode == 3 and "--nope: no such file" in done.stderr


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    """Who writes, knows no name: the system does not say one."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flux_core.files.sync", full)
    small = ("--steps", "1", "--width", "64", "--height", "64", "--quiet")
    for out, file in (("a.png", "a.png"), ("b", "b/generate_00001.png")):
        done = call("generate", "x", *small, "--out", out, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr == f"fluxfit: {tmp_path / file}: No space left on device\n"


@pytest.mark.parametrize("command", [("plan",), ("inspect", "x"), ("run", "text_to_image.json")])
def test_a_folder_of_models_is_one(command, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name, problem in (("none", "no such folder"), ("file", "is a file, expected a folder")):
        done = call("--models", name, *command, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (3, f"fluxfit: --models {name}: {problem}\n")


#: Numbers out of range, and files that are nowhere: neither needs torch to be told.
NUMBERS = (
    *("generate x --steps 0", "generate x --width 100", "generate x --height 160000"),
    *("generate x --width 16384 --height 16384 --batch-size 9", "generate x --batch-size 0"),
    *("generate x --cfg 1e9", "generate x --cfg nan", "generate x --guidance -1"),
    *("generate x --image . --denoise 2", "generate x --count 0", "generate x --seed -1"),
    *("generate x --image . --denoise 0", "generate x --seed 99999999999999999999999"),
    *("generate x --hires 99", "generate x --hires 2 --hires-denoise 2", "generate x --cfg-end 2"),
    *("generate x --nag-scale -1", "generate x --out a.jpg", "generate x --image ."),
    *("plan --width 100", "plan --steps 0", "plan --vram -1"),
)
MISSING = (
    *("generate x --transformer none.safetensors", "inspect none.png", "plan --models none"),
)


def test_help_and_wrong_arguments_wait_for_nothing(tmp_path):
    """Never by time: what takes time is not imported."""
    heavy = ("torch", "numpy", "PIL", "transformers", "fluxfit.nodes")
    wrong = (("paint",), ("generate", "x", "--steps", "many"), ("plan", "--nothing"), ())
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        f"opening = runpy.run_path({str(ROOT / '__main__.py')!r})\n"
        "opening['open_package']()\n"
        "from fluxfit import cli\n"
        "for words in [['--help'], ['--version'], *([c, '--help'] for c in cli.COMMANDS)]:\n"
        "    try:\n"
        "        cli.main(words)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, words\n"
        "    else:\n"
        "        raise AssertionError(words)\n"
        f"for words in {wrong!r}:\n"
        "    assert cli.main(list(words)) == 2, words\n"
        f"for words in {NUMBERS!r}:\n"
        "    assert cli.main(words.split()) == 2, words\n"
        f"for words in {MISSING!r}:\n"
        "    assert cli.main(words.split()) == 3, words\n"
        f"assert not set(sys.modules) & set({heavy!r}), set(sys.modules) & set({heavy!r})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "usage: fluxfit generate" in done.stdout
