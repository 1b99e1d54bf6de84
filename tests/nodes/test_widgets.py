"""Every node builds its inputs from one set of functions, and is registered once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from fluxfit.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, NODES

FOLDER = Path(__file__).resolve().parents[2] / "nodes"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_no_input_is_spelled_out(path):
    if path.name == "widgets.py" or path.name.startswith("stock_"):
        return  # stock nodes have the host's own inputs, which say less
    spelled = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Tuple)
        and len(node.elts) == 2
        and isinstance(node.elts[1], ast.Dict)
    ]
    assert not spelled, f"{path.name}: lines {spelled} spell out what widgets make"


def test_every_input_has_a_tooltip():
    for name, node in NODE_CLASS_MAPPINGS.items():
        for kind, inputs in node.INPUT_TYPES().items():
            if kind == "hidden":
                continue
            for key, (_, options) in inputs.items():
                assert options.get("tooltip"), f"{name}.{key}"


def test_a_node_is_registered_once():
    assert set(NODE_CLASS_MAPPINGS) == set(NODE_DISPLAY_NAME_MAPPINGS)
    assert len(NODES) == len(NODE_CLASS_MAPPINGS) == len(set(NODE_DISPLAY_NAME_MAPPINGS.values()))
