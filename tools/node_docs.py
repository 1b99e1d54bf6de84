"""Writes the tables of inputs and outputs into docs/nodes.md, from the node classes.

    python -m tools.node_docs

What stands above the marker in that file is written by hand and stays.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "nodes.md"
MARKER = "<!-- Below: python -m tools.node_docs -->\n"


def cell(text: object) -> str:
    """A text as one cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def type_name(kind: Any) -> str:
    return "choice" if isinstance(kind, (list, tuple)) else str(kind)


def default_of(kind: Any, options: dict[str, Any]) -> str:
    if "default" not in options:
        return ""
    default = options["default"]
    return f"`{cell(default)}`" if default != "" else "empty"


def input_rows(node: Any) -> list[str]:
    rows = []
    for group, inputs in node.INPUT_TYPES().items():
        if group == "hidden":
            continue
        for name, (kind, *rest) in inputs.items():
            options = rest[0] if rest else {}
            needed = "yes" if group == "required" else "no"
            cells = [
                f"`{name}`",
                type_name(kind),
                needed,
                default_of(kind, options),
                cell(options.get("tooltip", "")),
            ]
            rows.append("| " + " | ".join(cells) + " |")
    return rows


def output_rows(node: Any) -> list[str]:
    types = getattr(node, "RETURN_TYPES", ())
    names = getattr(node, "RETURN_NAMES", types)
    tips = getattr(node, "OUTPUT_TOOLTIPS", ("",) * len(types))
    return [
        f"| `{name}` | {kind} | {cell(tip)} |"
        for name, kind, tip in zip(names, types, tips, strict=True)
    ]


def section(title: str, name: str, node: Any) -> str:
    """One node: its description, its inputs and its outputs."""
    lines = [f"## {title}", "", f"`{name}`. {cell(getattr(node, 'DESCRIPTION', ''))}", ""]
    inputs, outputs = input_rows(node), output_rows(node)
    if inputs:
        head = [
            "| input | type | required | default | what it does |",
            "| --- | --- | --- | --- | --- |",
        ]
        lines += [*head, *inputs, ""]
    if outputs:
        lines += ["| output | type | what it is |", "| --- | --- | --- |", *outputs, ""]
    return "\n".join(lines)


def tables() -> str:
    """All nodes, in the order in which the package names them."""
    runpy.run_path(str(ROOT / "__main__.py"))["open_package"]()
    from fluxfit.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    return "\n".join(
        section(NODE_DISPLAY_NAME_MAPPINGS[name], name, node)
        for name, node in NODE_CLASS_MAPPINGS.items()
    )


def page() -> str:
    """The page as it should be."""
    by_hand, marker, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
    assert marker, f"{PAGE} has no line {MARKER!r}"
    return f"{by_hand}{MARKER}\n{tables()}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
