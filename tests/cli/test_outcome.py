"""What `--json` prints, and the statuses with which commands end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fluxfit import cli
from fluxfit.cli.exit_codes import exit_code
from fluxfit.cli.outcome import Outcome

from tests.cli.command_line import POCKET, call

SMALL = ("--steps", "1", "--width", "64", "--height", "64", "--quiet")


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), 2),
        (FileNotFoundError("x"), 3),
        (caused(ValueError("x: no such file"), FileNotFoundError("x")), 3),
        (torch.OutOfMemoryError("CUDA out of memory"), 4),
        (MemoryError(), 4),
        (caused(ValueError("x: cannot be read"), MemoryError()), 4),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 4),
        (RuntimeError("x"), 1),
        (PermissionError("x"), 1),
        (KeyError("x"), 1),
        (type("Diverged", (ValueError, FloatingPointError), {})("x"), 1),
    ],
)
def test_an_error_ends_with_the_status_of_its_kind(error, status, tmp_path, monkeypatch):
    assert exit_code(error) == status

    def fail(_: object) -> Outcome:
        raise error

    monkeypatch.setattr(cli.COMMANDS["inspect"], "run", fail)
    done = call("inspect", "x", "--json", cwd=tmp_path)
    assert done.returncode == status and done.stderr.count("\n") == 1
    kinds = {1: "failed", 2: "bad_input", 3: "missing", 4: "out_of_memory"}
    assert json.loads(done.stdout)["error"]["kind"] == kinds[status]


def test_an_interrupt_is_told_in_json_too(tmp_path, monkeypatch):
    def interrupt(_: object) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.COMMANDS["inspect"], "run", interrupt)
    done = call("--json", "inspect", "x", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "fluxfit: interrupted\n")
    assert json.loads(done.stdout) == {"error": {"kind": "interrupted", "message": "interrupted"}}


@pytest.mark.parametrize(
    "arguments",
    [("paint",), (), ("generate", "x", "--steps", "many"), ("inspect",), ("plan", "--nothing")],
)
def test_arguments_that_fit_no_command_are_bad_input(arguments, tmp_path):
    plain = call(*arguments, cwd=tmp_path)
    assert plain.returncode == 2 and plain.stderr.count("\n") == 1 and not plain.stdout
    assert "--help says what there is" in plain.stderr
    in_json = call("--json", *arguments, cwd=tmp_path)
    assert json.loads(in_json.stdout)["error"]["kind"] == "bad_input"


def test_what_a_command_could_not_do_whole_is_a_status_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.COMMANDS["inspect"], "run", lambda _: Outcome("half", {}, 1))
    done = call("inspect", "x", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "half\n")


def test_what_is_printed_on_the_way_is_not_on_stdout(tmp_path, monkeypatch):
    def noisy(_: object) -> Outcome:
        print("a note")
        return Outcome("done", {"files": [Path("a")]})

    monkeypatch.setattr(cli.COMMANDS["inspect"], "run", noisy)
    done = call("inspect", "x", "--json", cwd=tmp_path)
    assert json.loads(done.stdout) == {"files": ["a"]} and done.stderr == "a note\n"


def test_commands_say_in_json_what_they_did(tmp_path):
    def data(*arguments: str) -> dict:
        done = call("--json", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
        return json.loads(done.stdout)

    drawn = data("generate", "a circle", *SMALL, "--seed", "5")
    assert [Path(path).is_file() for path in drawn["pictures"]] == [True]
    assert drawn["seeds"] == [5] and drawn["parts"]["transformer"]["weights"] > 0
    steps = ("--set", "FluxSampler.steps=1")
    ran = data("run", "text_to_image.json", *steps, "--quiet")
    assert [Path(path).is_file() for path in ran["pictures"]] == [True] and ran["seconds"] > 0
    card = data("plan", "--vram", "8", "--steps", "20")["rows"][0]
    assert card["fits"] and 0 < card["peak"] < 8e9 and card["seconds_a_picture"] > 0
    assert not data("plan", "--vram", "1.5")["rows"][0]["fits"]
    transformer = str(POCKET / "diffusion_models" / "fluxfit_pocket.safetensors")
    written = data("quantize", transformer, "--out", "q.safetensors")
    assert written == {"files": ["q.safetensors"], "part": "transformer"}
