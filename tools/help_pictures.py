"""Draws nodes/web/docs/images/: every node as it stands in a graph, for its page of help.

    COMFYUI_PATH=... python -m tools.help_pictures [NODE ...]

Needs what tests/browser need (see CONTRIBUTING.md). A node that a shipped workflow has is shown
there, with the wires that it has; what a workflow draws stands beside the nodes that it is about.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser.conftest import chromium_path, launched, prepare
from tests.browser.editor import Editor
from tests.browser.test_page import NEED_FILES, WORKFLOWS, node_ids
from tests.host.small_models import write_small_models
from tests.host_server import ROOT, running_server

TARGET = ROOT / "nodes" / "web" / "docs" / "images"
#: What workflows draw, beside the nodes whose doing it shows.
RESULTS = {
    "FluxSampler": "workflows/text_to_image.jpg",
    "FluxTextEncode": "workflows/text_to_image.jpg",
    "ControlNetUpscalerFP8": "workflows/upscale.jpg",
    "FluxFitTransformerLoader": "workflows/compare_precisions.jpg",
    "FluxFitCalibrate": "workflows/compare_precisions.jpg",
    "FluxFitGrid": "workflows/compare_precisions.jpg",
    "FluxFitTrainLora": "workflows/train_lora.jpg",
    "FluxFitMemoryReport": "assets/timeline.png",
}
#: Around a node, in pixels; pixels of a result at most.
MARGIN, RESULT = 36, (420, 300)
COLOURS = 96
SHOW = """([type, margin]) => {
    let node = app.graph.nodes.find(node => node.type === type)
    if (!node) {
        node = LiteGraph.createNode(type)
        app.graph.add(node)
    }
    node.title = node.constructor.title
    for (const widget of node.widgets ?? [])  // a choice among files that nobody has yet
        if (widget.value === undefined) widget.value = 'mine'
    node.setSize([Math.max(node.size[0], node.computeSize()[0]), node.computeSize()[1]])
    for (const group of [...app.graph.groups ?? []]) app.graph.remove(group)
    for (const other of [...app.graph.nodes])  // its neighbours may be far, their wires are enough
        if (other.type === 'MarkdownNote') app.graph.remove(other)
    const scale = 1.0
    app.canvas.ds.scale = scale
    app.canvas.ds.offset[0] = 700 / scale - node.pos[0]
    app.canvas.ds.offset[1] = 200 / scale - node.pos[1]
    app.canvas.deselectAll?.()
    app.canvas.setDirty(true, true)
    const title = LiteGraph.NODE_TITLE_HEIGHT
    return {
        x: 700 - margin, y: 200 - (title + margin) * scale,
        width: node.size[0] * scale + 2 * margin,
        height: (node.size[1] + title) * scale + 2 * margin,
    }
}"""


def workflow_with(name: str) -> str | None:
    """The workflow of a node's result, or the first that has it, those of the pocket model before
    others."""
    names = sorted(WORKFLOWS, key=lambda stem: (stem in NEED_FILES, len(stem)))
    names.sort(key=lambda stem: stem != Path(RESULTS.get(name, "")).stem)
    for stem in names:
        nodes = json.loads(WORKFLOWS[stem].read_text())["nodes"]
        if any(node["type"] == name for node in nodes):
            return stem
    return None


def shown(editor: Editor, name: str) -> Image.Image:
    """A node as the page draws it."""
    editor.clear()
    stem = workflow_with(name)
    if stem is not None:
        editor.load(json.loads(WORKFLOWS[stem].read_text()))
    clip = editor.page.evaluate(SHOW, [name, MARGIN])
    editor.page.wait_for_timeout(1500)
    return Image.open(io.BytesIO(editor.page.screenshot(clip=clip))).convert("RGB")


def with_result(node: Image.Image, result: Path | None) -> Image.Image:
    """A node, and what came of it to its right."""
    if result is None:
        return node
    with Image.open(result) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail(RESULT, Image.Resampling.LANCZOS)
    size = node.width + picture.width + MARGIN, max(node.height, picture.height + 2 * MARGIN)
    rim = node.crop((0, 0, 1, node.height)).getcolors()
    assert rim is not None
    ground = Image.new("RGB", size, max(rim)[1])
    ground.paste(node, (0, (size[1] - node.height) // 2))
    ground.paste(picture, (node.width, (size[1] - picture.height) // 2))
    return ground


def main() -> None:
    names = sys.argv[1:] or node_ids()
    path = chromium_path()
    if path is None:
        sys.exit("there is no Chromium; CHROMIUM_PATH may name one")
    sync_api = importlib.import_module("playwright.sync_api")  # which only this and tests need
    TARGET.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_server(Path(folder)) as server,
        sync_api.sync_playwright() as playwright,
        launched(playwright, path) as browser,
    ):
        prepare(server)
        write_small_models(server.base / "models", server.base / "input")
        page = browser.new_page(viewport={"width": 1800, "height": 1300})
        editor = Editor(page, server, Path(folder))
        editor.open()
        for name in names:
            result = RESULTS.get(name)
            picture = with_result(shown(editor, name), ROOT / result if result else None)
            file = TARGET / f"{name}.png"
            picture.quantize(COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)
            print(f"{file.name}: {file.stat().st_size / 1024:.0f} KiB, {picture.size}")


if __name__ == "__main__":
    main()
