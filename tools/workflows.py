"""Write ``workflows/``: each graph in the page's format, as an API prompt, and as a thumbnail.

``tools.graphs`` describes each by its nodes and wires; sizes, widget order and types come from the
node classes, so that both formats always fit them. ``python -m tools.workflows`` writes all; pocket
workflows are run for their thumbnail, the others are drawn as diagrams.
"""

from __future__ import annotations

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from tools.graphs import Description, Node, descriptions

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "workflows"
THUMBNAIL = 512
BACKGROUND = (24, 26, 32)

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


def ui_workflow(graph: Description) -> dict[str, Any]:
    numbers = {name: i + 1 for i, name in enumerate(graph)}
    links: list[list[Any]] = []
    incoming: dict[tuple[str, str], int] = {}
    outgoing: dict[tuple[str, int], list[int]] = {}
    for name, node in graph.items():
        specs = headless.input_specs(headless.KNOWN_NODES[node.type])
        ordered = [key for key in specs if not headless.is_widget(specs[key][0])]
        for key, (source, slot) in node.wires.items():
            number = len(links) + 1
            kind = outputs_of(graph[source].type)[slot][1]
            links.append([number, numbers[source], slot, numbers[name], ordered.index(key), kind])
            incoming[name, key] = number
            outgoing.setdefault((source, slot), []).append(number)
    nodes = [ui_node(name, node, numbers[name], incoming, outgoing) for name, node in graph.items()]
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def size_of(node: Node) -> list[int]:
    """Width and height that hold a node's sockets and widgets."""
    specs = headless.input_specs(headless.KNOWN_NODES[node.type])
    rows = max(len(specs) - len(widgets(node)), len(outputs_of(node.type)))
    height = 40 + 20 * rows + 26 * len(widgets(node))
    height += 100 * sum(bool(options.get("multiline")) for _, options in specs.values())
    return [340, height + (280 if node.type in ("SaveImage", "LoadImage") else 0)]


def ui_node(name: str, node: Node, number: int, incoming: dict, outgoing: dict) -> dict[str, Any]:
    specs = headless.input_specs(headless.KNOWN_NODES[node.type])
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
        "pos": [node.x, node.y],
        "size": size_of(node),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [
            {"name": key, "type": kind, "link": incoming.get((name, key))}
            for key, (kind, _) in specs.items()
            if not headless.is_widget(kind)
        ],
        "outputs": [
            {
                "name": label,
                "type": kind,
                "links": outgoing.get((name, slot), []),
                "slot_index": slot,
            }
            for slot, (label, kind) in enumerate(outputs_of(node.type))
        ],
        "properties": properties,
        "widgets_values": values,
    }
    return node_entry | ({"title": node.title} if node.title else {})


def diagram(workflow: dict[str, Any]) -> Image.Image:
    """The graph as boxes and wires."""
    nodes = {n["id"]: n for n in workflow["nodes"]}
    right = max(n["pos"][0] + n["size"][0] for n in nodes.values()) + 40
    bottom = max(n["pos"][1] + n["size"][1] for n in nodes.values()) + 60
    scale = THUMBNAIL / max(right, bottom)
    picture = Image.new("RGB", (THUMBNAIL * 2, THUMBNAIL * 2), BACKGROUND)
    canvas, scale = ImageDraw.Draw(picture), scale * 2
    font = ImageFont.load_default(size=15)

    def at(x: float, y: float) -> tuple[float, float]:
        return (x + 20) * scale, (y + 40) * scale + (2 * THUMBNAIL - bottom * scale) / 2

    for _, source, slot, target, place, _ in workflow["links"]:
        a, b = nodes[source], nodes[target]
        start = at(a["pos"][0] + a["size"][0], a["pos"][1] + 14 + 20 * slot)
        end = at(b["pos"][0], b["pos"][1] + 14 + 20 * place)
        canvas.line([start, end], fill=(240, 170, 60), width=3)
    for node in nodes.values():
        (x, y), (w, h) = node["pos"], node["size"]
        ours = node["type"] in NODE_CLASS_MAPPINGS
        canvas.rounded_rectangle(
            (*at(x, y - 24), *at(x + w, y + h)), 8, fill=(52, 78, 120) if ours else (58, 60, 68)
        )
        canvas.text(at(x + 10, y - 10), node["type"], fill=(255, 255, 255), font=font)
    return picture.reduce(2)


def write(name: str, graph: Description) -> None:
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    workflow = ui_workflow(graph)
    page, api = FOLDER / f"{name}.json", FOLDER / "api" / f"{name}.json"
    page.write_text(json.dumps(workflow, indent=2) + "\n")
    api.write_text(json.dumps(api_prompt(graph), indent=2) + "\n")
    if any(node.models for node in graph.values()):
        picture = diagram(workflow)
    else:
        results = headless.run(headless.read_workflow(page))
        pictures = [Image.open(path) for path in headless.saved_images(results)]
        size = (THUMBNAIL, THUMBNAIL)
        picture = ImageOps.pad(pictures[-1], size, Image.Resampling.LANCZOS, color=BACKGROUND)
    picture.convert("RGB").save(FOLDER / f"{name}.jpg", quality=88)
    print(f"workflows/{name}.json, api/{name}.json, {name}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="names; all without")
    args = parser.parse_args()
    for name, graph in descriptions().items():
        if not args.only or name in args.only:
            write(name, graph)


if __name__ == "__main__":
    main()
