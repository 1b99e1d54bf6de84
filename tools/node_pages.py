"""Writes what ComfyUI shows of a node: its names (``locales``) and its help (``nodes/web``).

    python -m tools.node_pages

English names come from the node classes, Chinese ones are written by hand in ``locales/zh``.
Help is ``nodes/web/docs/<Node>.md``, in Chinese ``<Node>/zh.md`` there: what stands above
the marker is written by hand, the tables below are made of the names.
"""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.node_docs import cell, type_name

ROOT = Path(__file__).resolve().parents[1]
LOCALES = ROOT / "locales"
PAGES = ROOT / "nodes" / "web" / "docs"
MARKER = "<!-- Below: python -m tools.node_pages -->\n"
#: Words of the tables, by language.
WORDS = {
    "en": {
        "inputs": "Inputs",
        "outputs": "Outputs",
        "name": "name",
        "type": "type",
        "what": "what",
    },
    "zh": {"inputs": "输入", "outputs": "输出", "name": "名称", "type": "类型", "what": "说明"},
}
Definitions = dict[str, dict[str, Any]]


def open_nodes() -> tuple[dict[str, Any], dict[str, str]]:
    """All nodes and their names, by id."""
    runpy.run_path(str(ROOT / "__main__.py"))["open_package"]()
    from fluxfit.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    return NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS


def inputs_of(node: Any) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Type and options of every input that a person sees."""
    inputs_by_name = {}
    for group, inputs in node.INPUT_TYPES().items():
        if group != "hidden":
            for name, (kind, *rest) in inputs.items():
                inputs_by_name[name] = (kind, rest[0] if rest else {})
    return inputs_by_name


def definitions() -> Definitions:
    """The English ``nodeDefs.json``."""
    classes, names = open_nodes()
    return {
        key: {
            "display_name": names[key],
            "description": node.DESCRIPTION,
            "inputs": {
                name: {"name": name, "tooltip": options.get("tooltip", "")}
                for name, (_, options) in inputs_of(node).items()
            },
            "outputs": {
                str(slot): {"name": name, "tooltip": tip}
                for slot, (name, tip) in enumerate(
                    zip(node.RETURN_NAMES, node.OUTPUT_TOOLTIPS, strict=True)
                )
            },
        }
        for key, node in classes.items()
    }


def categories() -> dict[str, dict[str, str]]:
    """The English ``main.json``: the parts of the menu."""
    classes, _ = open_nodes()
    parts = {part for node in classes.values() for part in node.CATEGORY.split("/")}
    return {"nodeCategories": {part: part for part in sorted(parts)}}


def translated(language: str) -> Definitions:
    """The node definitions of a language as they lie on disk."""
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    lines = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(map(cell, line)) + " |" for line in lines]


def tables(key: str, node: Any, names: Mapping[str, Any], language: str) -> str:
    """The inputs and outputs of a node in a language."""
    words = WORDS[language]
    head = (words["name"], words["type"], words["what"])
    inputs = [
        (named["name"], type_name(kind), named["tooltip"])
        for name, (kind, _) in inputs_of(node).items()
        for named in [names["inputs"][name]]
    ]
    outputs = [
        (names["outputs"][str(slot)]["name"], kind, names["outputs"][str(slot)]["tooltip"])
        for slot, kind in enumerate(node.RETURN_TYPES)
    ]
    lines: list[str] = []
    for title, rows in ((words["inputs"], inputs), (words["outputs"], outputs)):
        if rows:
            lines += [f"## {title}", "", *table(head, rows), ""]
    return "\n".join(lines)


def page_path(key: str, language: str) -> Path:
    """Where the page asks for the help of a node."""
    return PAGES / f"{key}.md" if language == "en" else PAGES / key / f"{language}.md"


def page(key: str, node: Any, names: Mapping[str, Any], language: str) -> str:
    """A page of help as it should be; raises ``ValueError`` where nothing is written by hand."""
    path = page_path(key, language)
    by_hand = written_by_hand(path)
    if not by_hand:
        raise ValueError(f"{path}: expected some lines about {key}, and below them {MARKER!r}")
    return f"{by_hand}\n\n{MARKER}\n{tables(key, node, names, language)}"


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a definition, with where it stands."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from texts(inner, f"{path}/{key}")
    else:
        yield path, value


def problems() -> list[str]:
    """What has to be written or taken away by hand, one line a text or page."""
    english, lines = definitions(), []
    wanted = dict(texts(english))
    for language in WORDS:
        if language != "en":
            names, where = dict(texts(translated(language))), f"locales/{language}/nodeDefs.json"
            lines += [
                f"{where}: add {at}, in English {text!r}"
                for at, text in wanted.items()
                if at not in names or (text and not names[at])
            ]
            lines += [f"{where}: take away {at}" for at in names if at not in wanted]
        for key in english:
            path = page_path(key, language)
            if not written_by_hand(path):
                at = path.relative_to(ROOT).as_posix()
                lines.append(f"{at}: write what {key} is for, and below it {MARKER!r}")
    return lines


def written_by_hand(path: Path) -> str:
    """What stands above the marker of a page; empty without a page or a marker."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    by_hand, marker, _ = text.partition(MARKER)
    return by_hand.rstrip() if marker else ""


def files() -> dict[Path, str]:
    """All that is made of the nodes, by where it lies; only where ``problems`` are none."""
    english = definitions()
    texts = {
        LOCALES / "en" / "nodeDefs.json": as_json(english),
        LOCALES / "en" / "main.json": as_json(categories()),
    }
    classes, _ = open_nodes()
    for language in WORDS:
        names = english if language == "en" else translated(language)
        for key, node in classes.items():
            texts[page_path(key, language)] = page(key, node, names[key], language)
    return texts


def as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    if by_hand := problems():
        raise SystemExit("\n".join(by_hand))
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
