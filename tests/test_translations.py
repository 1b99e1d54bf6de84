"""Names, tooltips and help of every node, in English and in Chinese."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tools import node_pages

CHINESE = re.compile(r"[\u4e00-\u9fff]")
#: Abbreviations and names that are the same in every language.
SAME = re.compile(r"[A-Z0-9 .-]+|LoRA|ControlNet|FluxFit")
LANGUAGES = sorted(node_pages.WORDS)
NODES, _ = node_pages.open_nodes()
ENGLISH = node_pages.definitions()


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a definition, with where it stands."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(inner, f"{path}/{key}")
    else:
        yield path, value


def test_what_is_made_of_the_nodes_is_up_to_date():
    old = [
        path.relative_to(node_pages.ROOT).as_posix()
        for path, text in node_pages.files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert old == [], "run: python -m tools.node_pages"


def test_every_text_is_translated_and_none_is_stale():
    theirs = dict(texts(node_pages.translated("zh")))
    ours = dict(texts(ENGLISH))
    assert sorted(theirs) == sorted(ours), "locales/zh/nodeDefs.json has other names"
    plain = [path for path, text in theirs.items() if ours[path] and not is_chinese(text)]
    assert plain == []


def is_chinese(text: str) -> bool:
    return bool(CHINESE.search(text) or SAME.fullmatch(text))


def test_the_menu_is_translated():
    path = node_pages.LOCALES / "zh" / "main.json"
    theirs = json.loads(path.read_text(encoding="utf-8"))
    ours = node_pages.categories()
    assert theirs["nodeCategories"].keys() == ours["nodeCategories"].keys()
    assert all(map(is_chinese, theirs["nodeCategories"].values()))


@pytest.mark.parametrize("key", NODES)
def test_every_input_and_output_says_what_it_is(key):
    for path, text in texts(ENGLISH[key]):
        assert text, f"{key}{path} is empty"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("key", NODES)
def test_every_node_has_a_page_of_help(key, language):
    text = node_pages.page_path(key, language).read_text(encoding="utf-8")
    by_hand, _, _ = text.partition(node_pages.MARKER)
    lines = [line for line in by_hand.splitlines() if line.strip()]
    assert lines[0].startswith("# ") and len(lines) > 5
    assert language == "en" or len(CHINESE.findall(by_hand)) > 100


def test_no_page_is_left_of_a_node_that_is_gone():
    pages = {path.stem for path in node_pages.PAGES.glob("*.md")}
    folders = {path.name for path in node_pages.PAGES.iterdir() if path.is_dir()}
    assert pages == folders == set(NODES)
