"""Names, tooltips and help of every node, in English and in Chinese."""

from __future__ import annotations

import json
import re

import pytest

from tools import node_pages
from tools.node_pages import texts

CHINESE = re.compile(r"[\u4e00-\u9fff]")
#: Abbreviations and names that are the same in every language.
SAME = re.compile(r"[A-Z0-9 .-]+|LoRA|ControlNet|FluxFit")
#: Columns of a metadata.csv, which help names beside inputs.
NOT_OF_NODES = {"file_name", "text"}
LANGUAGES = sorted(node_pages.WORDS)
NODES, _ = node_pages.open_nodes()
ENGLISH = node_pages.definitions()


def test_nothing_is_left_to_write_by_hand():
    by_hand = "\n".join(node_pages.problems())
    assert not by_hand, by_hand


def test_what_is_made_of_the_nodes_is_up_to_date():
    if node_pages.problems():
        pytest.skip("first write what is left to write by hand")
    old = [
        path.relative_to(node_pages.ROOT).as_posix()
        for path, text in node_pages.files().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert old == [], "run: python -m tools.node_pages"


def test_chinese_texts_are_chinese():
    theirs = dict(texts(node_pages.translated("zh")))
    plain = [path for path, text in theirs.items() if text and not is_chinese(text)]
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
    by_hand = node_pages.written_by_hand(node_pages.page_path(key, language))
    if not by_hand:
        pytest.skip("told by the test of what is left to write by hand")
    lines = [line for line in by_hand.splitlines() if line.strip()]
    assert lines[0].startswith("# ") and len(lines) > 5
    assert language == "en" or len(CHINESE.findall(by_hand)) > 100


def test_no_page_is_left_of_a_node_that_is_gone():
    pages = {path.stem for path in node_pages.PAGES.glob("*.md")}
    folders = {path.name for path in node_pages.PAGES.iterdir() if path.is_dir()}
    assert pages == folders - {"images"} == set(NODES)


def words_of_the_nodes() -> set[str]:
    """Names of inputs and outputs, and what can be chosen."""
    words = {name for node in ENGLISH.values() for name in node["inputs"]}
    words |= {slot["name"] for node in ENGLISH.values() for slot in node["outputs"].values()}
    for node in NODES.values():
        for kind, _ in node_pages.inputs_of(node).values():
            words |= set(map(str, kind)) if isinstance(kind, (list, tuple)) else {str(kind)}
    return words | {path.stem for path in (node_pages.ROOT / "workflows").glob("*.json")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_names_inputs_outputs_and_choices_that_exist(language):
    known = words_of_the_nodes() | NOT_OF_NODES
    for key in NODES:
        by_hand = node_pages.written_by_hand(node_pages.page_path(key, language))
        named = set(re.findall(r"`([A-Za-z0-9_]+)`", by_hand))
        assert named <= known, f"{key}, {language}: {sorted(named - known)}"


def test_every_page_of_help_has_its_picture_and_every_picture_its_pages():
    folder = node_pages.PAGES
    shown = {}
    for page in sorted(folder.rglob("*.md")):
        (picture,) = re.findall(r"!\[[^]]+\]\(images/(\w+)\.png\)", page.read_text("utf-8"))
        shown.setdefault(picture, set()).add(page.relative_to(folder).as_posix())
    assert shown == {key: {f"{key}.md", f"{key}/zh.md"} for key in NODES}
    assert {path.stem for path in (folder / "images").iterdir()} == set(NODES) == set(shown)
