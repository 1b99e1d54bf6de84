"""Thumbnails of ``workflows/``: what a graph draws, or the graph where its models are not here.

Each says its title, so that they are told apart in the page's list.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib import font_manager
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

SIDE = 512
BACKGROUND, WORDS, QUIET = (24, 26, 32), (245, 247, 252), (170, 178, 196)
#: Height of the title below pictures, and around what is drawn, in pixels.
BAR, MARGIN = 64, 24


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib."""
    properties = font_manager.FontProperties(
        family="DejaVu Sans", weight="bold" if bold else "normal"
    )
    return ImageFont.truetype(font_manager.findfont(properties), size)


def title_of(note: str) -> str:
    return note.splitlines()[0].lstrip("# ")


def of_pictures(pictures: Sequence[Image.Image], note: str) -> Image.Image:
    """The last picture that a graph saves; of several the first too, to its left."""
    chosen = [pictures[0], pictures[-1]] if len(pictures) > 1 else [pictures[-1]]
    thumbnail = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    height, width = SIDE - BAR, (SIDE - 4 * (len(chosen) - 1)) // len(chosen)
    for i, picture in enumerate(chosen):
        if picture.width > picture.height:  # a sheet, of which nothing is cut off
            shown = ImageOps.pad(picture, (width, height), color=BACKGROUND)
        else:
            shown = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
        thumbnail.paste(shown, (i * (width + 4), 0))
    ImageDraw.Draw(thumbnail).text(
        (SIDE / 2, SIDE - BAR / 2), title_of(note), WORDS, font(28, bold=True), anchor="mm"
    )
    return thumbnail


def of_graph(workflow: dict[str, Any], note: str, ours: set[str]) -> Image.Image:
    """A graph's title, what it shows, and its nodes and wires."""
    thumbnail = Image.new("RGB", (SIDE, SIDE), BACKGROUND)
    draw = ImageDraw.Draw(thumbnail)
    graph = diagram(workflow, SIDE - MARGIN, ours)
    thumbnail.paste(graph, (MARGIN // 2, SIDE - graph.height - MARGIN))
    title = "\n".join(textwrap.wrap(title_of(note), 17))
    draw.multiline_text((MARGIN, MARGIN), title, WORDS, font(44, bold=True), spacing=10)
    below = MARGIN + 58 * (title.count("\n") + 1) + 12
    shows = note.split("\n\n")[1].replace("`", "").replace("*", "")
    lines = textwrap.wrap(shows, 40)
    room = (SIDE - graph.height - 2 * MARGIN - below) // 28
    if len(lines) > room:
        lines = [*lines[: room - 1], lines[room - 1] + " …"]
    draw.multiline_text((MARGIN, below), "\n".join(lines), QUIET, font(20), spacing=6)
    return thumbnail


def diagram(workflow: dict[str, Any], width_of_it: int, ours: set[str]) -> Image.Image:
    """The graph as boxes and wires, without its note, as wide as asked; our nodes in blue."""
    nodes = {n["id"]: n for n in workflow["nodes"] if n["type"] != "MarkdownNote"}
    points = {r["id"]: r for r in workflow["extra"].get("reroutes", [])}
    ends = {e["id"]: e["parentId"] for e in workflow["extra"].get("linkExtensions", [])}
    frames = [g["bounding"] for g in workflow["groups"]]
    left, top = min(f[0] for f in frames), min(f[1] for f in frames)
    width = max(f[0] + f[2] for f in frames) - left
    height = max(f[1] + f[3] for f in frames) - top
    scale = 2 * width_of_it / width
    picture = Image.new("RGB", (2 * width_of_it, round(height * scale)), BACKGROUND)
    canvas = ImageDraw.Draw(picture)
    label = font(16)

    def at(x: float, y: float) -> tuple[float, float]:
        return (x - left) * scale, (y - top) * scale

    for group in workflow["groups"]:
        x, y, w, h = group["bounding"]
        color = ImageColor.getrgb(group["color"])
        dark = tuple((a + 3 * b) // 4 for a, b in zip(color, BACKGROUND, strict=True))
        canvas.rectangle((*at(x, y), *at(x + w, y + h)), fill=dark)
        canvas.text(at(x + 12, y + 8), group["title"], fill=(200, 200, 200), font=label)
    for number, source, slot, target, place, _ in workflow["links"]:
        a, b = nodes[source], nodes[target]
        line = [at(b["pos"][0], b["pos"][1] + 14 + 20 * place)]
        end = ends.get(number)
        while end is not None:
            line.append(at(*points[end]["pos"]))
            end = points[end].get("parentId")
        line.append(at(a["pos"][0] + a["size"][0], a["pos"][1] + 14 + 20 * slot))
        canvas.line(line, fill=(240, 170, 60), width=2)
    for node in nodes.values():
        (x, y), (w, h) = node["pos"], node["size"]
        colour = (52, 78, 120) if node["type"] in ours else (58, 60, 68)
        canvas.rounded_rectangle((*at(x, y - 24), *at(x + w, y + h)), 8, fill=colour)
        fits = min(1, (w - 20) * scale / label.getlength(node["type"]))
        small = font(max(6, round(fits * 16)))
        canvas.text(at(x + 10, y - 10), node["type"], fill=(255, 255, 255), font=small)
    return picture.reduce(2)
