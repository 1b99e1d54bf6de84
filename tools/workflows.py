"""Write ``workflows/``: each graph in the page's format, as an API prompt, and as a thumbnail.

``tools.graphs`` describes each by its nodes and wires; sizes, widget order and types come from the
node classes, so that both formats always fit them. ``python -m tools.workflows`` writes all; pocket
workflows are run for their thumbnail; those of the others show the graph.
"""

from __future__ import annotations

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

from PIL import Image

from tools.dev_graphs import descriptions
from tools.graphs import Description, Node
from tools.layout import Box, Wire, lay_out, note_box
from tools.pages import PAGES, Page
from tools.thumbnails import of_graph, of_pictures

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "workflows"
#: Pixels of the page: widths of nodes with and without widgets, a row of sockets, a widget, what a
#: text has more than one, and pictures and texts that the page adds: the sampler's preview and
#: what it took, the policy's plan.
WIDTH, NARROW, SOCKET, WIDGET, TEXT = 330, 220, 20, 24, 70
PICTURES = {"SaveImage": 320, "PreviewImage": 320, "LoadImage": 300}
PICTURES |= {"FluxSampler": 316, "FluxFitHiresFix": 316, "KSampler": 240, "OffloadPolicy": 180}
PICTURES |= {"FluxFitBatch": 392, "FluxFitTable": 72}
PICTURES |= dict.fromkeys(("FluxFitDataset", "FluxFitTrainLora", "FluxFitMemoryReport"), 72)

runpy.run_path(str(ROOT / "__main__.py"), run_name="fluxfit_command")["open_package"]()

from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless  # noqa: E402  (the package is open now)


def outputs_of(type_: str) -> list[tuple[str, str]]:
    """Name and wire type of each output."""
    node_class = headless.KNOWN_NODES[type_]
    types = node_class.RETURN_TYPES
    return list(zip(getattr(node_class, "RETURN_NAMES", types), types, strict=True))


def widgets(node: Node) -> dict[str, Any]:
    """Values of a node's widgets in order, defaults filled in."""
    values = {}
    for name, (kind, options) in headless.input_specs(headless.KNOWN_NODES[node.type]).items():
        if headless.is_widget(kind):
            first = kind[0] if isinstance(kind, list | tuple) and kind else ""
            values[name] = node.values.get(name, options.get("default", first))
    unknown = set(node.values) - set(values)
    if unknown:
        raise ValueError(f"{node.type} has no widget {', '.join(sorted(unknown))}")
    return values


def api_prompt(graph: Description) -> dict[str, Any]:
    numbers = {name: str(i + 1) for i, name in enumerate(graph)}
    return {
        numbers[name]: {
            "class_type": node.type,
            "inputs": widgets(node)
            | {key: [numbers[source], slot] for key, (source, slot) in node.wires.items()},
            "_meta": {"title": node.title or node.type},
        }
        for name, node in graph.items()
    }


def wires_of(graph: Description) -> list[Wire]:
    """Every wire, numbered from 1."""
    wires: list[Wire] = []
    for name, node in graph.items():
        specs = headless.input_specs(headless.KNOWN_NODES[node.type])
        ordered = [key for key in specs if not headless.is_widget(specs[key][0])]
        for key, (source, slot) in node.wires.items():
            wires.append(Wire(len(wires) + 1, source, slot, name, ordered.index(key)))
    return wires


def ui_workflow(graph: Description, page: Page) -> dict[str, Any]:
    """The page's format: nodes in their places, wires, a frame a step and a note."""
    numbers = {name: i + 1 for i, name in enumerate(graph)}
    wires = wires_of(graph)
    layout = lay_out(page, graph, {name: size_of(node) for name, node in graph.items()}, wires)
    nodes = [ui_node(name, graph[name], numbers, wires, layout.boxes[name]) for name in graph]
    nodes.append(ui_note(page.note, len(nodes) + 1, note_box(page.note, layout)))
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(wires),
        "nodes": nodes,
        "links": [
            [
                wire.number,
                numbers[wire.source],
                wire.slot,
                numbers[wire.target],
                wire.place,
                outputs_of(graph[wire.source].type)[wire.slot][1],
            ]
            for wire in wires
        ],
        "groups": layout.groups,
        "config": {},
        "extra": layout.extra(),
        "version": 0.4,
    }


def size_of(node: Node) -> tuple[int, int]:
    """Width and height as the page draws a node, with some room for texts and pictures."""
    specs = headless.input_specs(headless.KNOWN_NODES[node.type])
    rows = max(len(specs) - len(widgets(node)), len(outputs_of(node.type)))
    count = len(widgets(node)) + sum(headless.adds_control(n, o) for n, (_, o) in specs.items())
    height = 14 + SOCKET * rows + WIDGET * (count + (node.type == "LoadImage"))
    height += TEXT * sum(bool(options.get("multiline")) for _, options in specs.values())
    width = WIDTH if count or node.type in PICTURES else NARROW
    return width, height + PICTURES.get(node.type, 0)


def ui_note(text: str, number: int, box: Box) -> dict[str, Any]:
    """A note of the page, which no run sees."""
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [box.x, box.y],
        "size": [box.width, box.height],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "properties": {},
        "widgets_values": [text],
        "title": "About",
        "color": "#432",
        "bgcolor": "#653",
    }


def ui_node(
    name: str, node: Node, numbers: dict[str, int], wires: list[Wire], box: Box
) -> dict[str, Any]:
    number = numbers[name]
    specs = headless.input_specs(headless.KNOWN_NODES[node.type])
    incoming = {wire.place: wire.number for wire in wires if wire.target == name}
    outgoing: dict[int, list[int]] = {}
    for wire in wires:
        if wire.source == name:
            outgoing.setdefault(wire.slot, []).append(wire.number)
    sockets = [(key, kind) for key, (kind, _) in specs.items() if not headless.is_widget(kind)]
    values: list[Any] = []
    for key, value in widgets(node).items():
        values.append(value)
        if headless.adds_control(key, specs[key][1]):
            values.append("fixed")
    if node.type == "LoadImage":
        values.append("image")
    properties: dict[str, Any] = {"Node name for S&R": node.type}
    if node.type in NODE_CLASS_MAPPINGS:
        properties |= {"cnr_id": "fluxfit", "ver": "0.1.0"}
    else:
        properties |= {"cnr_id": "comfy-core", "ver": "0.3.64"}
    if node.models:
        properties["models"] = node.models
    node_entry = {
        "id": number,
        "type": node.type,
        "pos": [box.x, box.y],
        "size": [box.width, box.height],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [
            {"name": key, "type": kind, "link": incoming.get(place)}
            for place, (key, kind) in enumerate(sockets)
        ],
        "outputs": [
            {
                "name": label,
                "type": kind,
                "links": outgoing.get(slot, []),
                "slot_index": slot,
            }
            for slot, (label, kind) in enumerate(outputs_of(node.type))
        ],
        "properties": properties,
        "widgets_values": values,
    }
    return node_entry | ({"title": node.title} if node.title else {})


def write(name: str, graph: Description, run: bool = True) -> None:
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    workflow = ui_workflow(graph, PAGES[name])
    page, api = FOLDER / f"{name}.json", FOLDER / "api" / f"{name}.json"
    page.write_text(json.dumps(workflow, indent=2) + "\n")
    api.write_text(json.dumps(api_prompt(graph), indent=2) + "\n")
    if any(node.models for node in graph.values()):
        picture = of_graph(workflow, PAGES[name].note, set(NODE_CLASS_MAPPINGS))
    elif not run:
        return
    else:
        results = headless.run(headless.read_workflow(page))
        pictures = [Image.open(path).convert("RGB") for path in headless.saved_images(results)]
        picture = of_pictures(pictures, PAGES[name].note)
    picture.save(FOLDER / f"{name}.jpg", quality=88)
    print(f"workflows/{name}.json, api/{name}.json, {name}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="names; all without")
    parser.add_argument("--no-run", action="store_true", help="leave drawn thumbnails as they are")
    args = parser.parse_args()
    for name, graph in descriptions().items():
        if not args.only or name in args.only:
            write(name, graph, run=not args.no_run)


if __name__ == "__main__":
    main()
