"""The README's examples run, and its tree is the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flux_core.train import read_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("text", re.findall(r"```toml\n(.*?)```", README, re.DOTALL))
def test_settings_are_settings(text, tmp_path):
    (tmp_path / "run.toml").write_text(text)
    config = read_config(tmp_path / "run.toml")
    assert (ROOT / Path(config.data[0].folder).relative_to(tmp_path)).is_dir()


def test_every_path_in_the_tree_exists():
    tree = re.search(r"## Where things are\n+```text\n(.*?)```", README, re.DOTALL)
    assert tree is not None
    parents: list[tuple[int, str]] = []
    for line in tree.group(1).splitlines():
        name = line.split()[0]
        indent = len(line) - len(line.lstrip())
        parents = [(i, n) for i, n in parents if i < indent]
        path = ROOT.joinpath(*[n for _, n in parents], name)
        assert path.exists(), path
        parents.append((indent, name))


def test_links_and_commands_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"`make (\w+)`", README):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def test_what_a_card_will_do_is_what_the_command_says():
    command = [sys.executable, str(ROOT), "plan"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout in README
