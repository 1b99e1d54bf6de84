"""What the documentation shows runs, and what it names exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flux_core.train import read_config
from tests.cli.command_line import call
from tools import node_docs

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
#: A line before an example that needs files which are not shipped.
NEEDS_WEIGHTS = "<!-- needs weights -->\n"
PYTHON = re.compile(rf"({re.escape(NEEDS_WEIGHTS)})?```python\n(.*?)```", re.DOTALL)
TOML = re.compile(r"```toml\n(.*?)```", re.DOTALL)
EXAMPLES = [
    pytest.param(code, name, id=f"{name}-{number}")
    for name, text in TEXTS.items()
    for number, (mark, code) in enumerate(PYTHON.findall(text))
    if not mark
]
NOT_RUN = [
    pytest.param(code, name, id=f"{name}-{number}")
    for name, text in TEXTS.items()
    for number, (mark, code) in enumerate(PYTHON.findall(text))
    if mark
]
SETTINGS = [code for text in TEXTS.values() for code in TOML.findall(text)]
every_page = pytest.mark.parametrize("name", TEXTS)


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_are_examples():
    assert "README.md" in {example.values[1] for example in EXAMPLES}
    assert NOT_RUN and SETTINGS


@pytest.mark.parametrize(("code", "name"), EXAMPLES)
def test_examples_run(code, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name, "exec"), {})


@pytest.mark.parametrize(("code", "name"), NOT_RUN)
def test_examples_with_weights_use_names_that_exist(code, name):
    compile(code, name, "exec")
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module = importlib.import_module(node.module or "")
        for alias in node.names:
            assert hasattr(module, alias.name), alias.name


@pytest.mark.parametrize("text", SETTINGS)
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


@every_page
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", TEXTS[name]):
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), anchor


@every_page
def test_paths_that_are_named_exist(name):
    folders = "flux_core|nodes|tests|tools|benchmarks|docs|workflows|assets"
    for path in re.findall(rf"`((?:{folders})/[\w./]*)`", TEXTS[name]):
        assert (ROOT / path).exists(), path


@every_page
def test_commands_exist(name):
    text = TEXTS[name]
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in re.findall(r"python3? -m ([\w.]*\w)", text):
        assert importlib.util.find_spec(module) is not None, module


def test_commands_of_the_command_line_exist():
    helped = subprocess.run(
        [sys.executable, str(ROOT), "--help"], capture_output=True, text=True, check=True
    )
    listed = re.search(r"\{([\w,-]+)\}", helped.stdout)
    assert listed is not None
    pattern = r"(?:(?:python|torchrun|accelerate)[^\n`]* \.|\bfluxfit) (?:--models \S+ )?([a-z]+)\b"
    shown = [
        code
        for text in TEXTS.values()
        for code in re.findall(r"```sh\n.*?```|(?<!`)`[^`]+`(?!`)", text, re.DOTALL)
    ]
    named = {
        command for code in shown for command in re.findall(pattern, re.sub(r" *#.*", "", code))
    }
    assert {"run", "generate", "plan", "train"} <= named
    assert named <= set(listed.group(1).split(",")), named


def test_what_a_card_will_do_is_what_the_command_says():
    assert call("plan", cwd=ROOT).stdout in TEXTS["docs/offload.md"]


def test_tables_of_nodes_are_up_to_date():
    assert node_docs.PAGE.read_text(encoding="utf-8") == node_docs.page()


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md"])
def test_what_was_not_measured_is_said(name):
    page_text = " ".join(TEXTS[name].split())
    expected = "Little has been measured on a GPU yet, and nothing with FLUX.1-dev's own weights"
    assert expected in page_text
    assert "NVIDIA H200" in page_text  # a figure of a card names it
