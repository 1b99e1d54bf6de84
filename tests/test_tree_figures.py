"""The figures of the tree: each tells the breach that it is for, and the tree keeps the bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.tree_figures import Figure, main, tree_figures

CLEAN = '''"""A module."""

from torch import Tensor


def double(x: Tensor) -> Tensor:
    """Twice x, (B, L, D)."""
    return 2 * x
'''
LONG = "def long() -> None:\n" + "    print()\n" * 70
#: Files of a tree, and what the figure of the breach begins with.
BREACHES = {
    "files over": {"flux_core/a.py": "x = 1\n" * 401},
    "nine in ten": {"tools/a.py": "".join(LONG.replace("long", f"f{i}") for i in range(9))},
    "functions over": {"benchmarks/a.py": LONG},
    "arguments without a type": {"nodes/a.py": "def f(x, *rest: int) -> None: ...\n"},
    "import circles": {
        "flux_core/a.py": "from .b import x\n",
        "flux_core/b.py": "def f() -> None:\n    from . import a\n",
    },
    "class names": {"flux_core/a.py": "class A: ...\n", "flux_core/b/c.py": "class A: ...\n"},
    "module-level function names": {
        "flux_core/a.py": "def f() -> None: ...\n",
        "flux_core/b.py": "if True:\n    def f() -> None: ...\n",
    },
    "comments that keep": {"tests/a.py": "x = [1]  # fmt: skip\n" * 41},
    "pixels divided": {"cli/a.py": "def f(height: int) -> int:\n    return height // 8\n"},
    "names of our own": {"flux_core/a.py": "def foresee() -> None: ...\n"},
}


def figures(root: Path, files: dict[str, str]) -> list[Figure]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tree_figures(root)


def broken(root: Path, files: dict[str, str]) -> list[str]:
    return [figure.name for figure in figures(root, files) if figure.broken]


def test_a_clean_tree_breaks_no_bound(tmp_path):
    assert broken(tmp_path, {"flux_core/a.py": CLEAN, ".venv/b.py": "class"}) == []
    assert main(["--root", str(tmp_path), "--check"]) == 0


@pytest.mark.parametrize("name", BREACHES)
def test_each_breach_is_told(name, tmp_path, capsys):
    names = broken(tmp_path, BREACHES[name])
    assert any(breach.startswith(name) for breach in names)
    assert main(["--root", str(tmp_path), "--check"]) == 1
    assert f"BROKEN {name}" in capsys.readouterr().out
    assert main(["--root", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "# long: one line a key\n" + LONG,
        "# long: one line a key\n@staticmethod\n" + LONG,
        LONG.replace(":\n", ":  # long: one line a key\n", 1),
    ],
)
def test_a_reason_allows_a_long_function(text, tmp_path):
    assert not any(name.startswith("functions over") for name in broken(tmp_path, {"a.py": text}))


def test_a_mark_without_a_reason_does_not(tmp_path):
    assert "functions over 60 lines without reason" in broken(
        tmp_path, {"a.py": "# long:\n" + LONG, "flux_core/b.py": CLEAN}
    )


@pytest.mark.parametrize(
    ("signature", "docstring", "count"),
    [
        ("x: Tensor", "Twice.", 1),
        ("x: Tensor", "Twice (B, L, 4 C).", 0),
        ("x: Tensor", "Twice ``x`` (..., in).", 0),
        ("x: Tensor", "Twice, which is much, of (whatever one likes it to be).", 1),
        ("x: 'Tensor | None'", "Twice.", 1),
        ("x: dict[str, Tensor]", "Twice.", 0),
        ("x: list[Tensor]", "Twice.", 1),
        ("x: int", "Twice.", 0),
    ],
)
def test_tensors_have_shapes_in_docstrings(signature, docstring, count, tmp_path):
    text = f'def f({signature}) -> None:\n    """{docstring}"""\n'
    by_name = {f.name.split(", ")[-1]: f for f in figures(tmp_path, {"flux_core/a.py": text})}
    assert by_name["docstrings without a shape"].value == count


def test_imports_of_a_package_s_own_modules_are_no_circle(tmp_path):
    files = {
        "flux_core/p/__init__.py": "from .a import x\n",
        "flux_core/p/a.py": "from . import b\nfrom .b import y\n",
        "flux_core/p/b.py": "y = 1\n",
    }
    assert broken(tmp_path, files) == []
    assert broken(tmp_path, {"flux_core/p/b.py": "from . import x\n"}) == [
        "import circles in core and nodes"
    ]
