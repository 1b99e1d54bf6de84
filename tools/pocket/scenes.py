"""The pocket model's world: one to three flat shapes on a flat background.

A ``Scene`` is the truth; ``draw`` makes its picture and ``captions.describe`` its sentence.
Lengths and places are fractions of the picture's side, so a scene is drawn at any size.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 50),
    "green": (40, 155, 60),
    "cyan": (70, 210, 220),
    "blue": (35, 70, 205),
    "purple": (130, 45, 165),
    "pink": (250, 150, 190),
    "white": (245, 245, 245),
    "black": (22, 22, 24),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring")
SIZES = {"small": (0.125, 0.145), "medium": (0.185, 0.21), "large": (0.27, 0.30)}
PLACES = {
    f"{row} {column}".strip(): (x, y)
    for row, y in (("top", 0.28), ("", 0.5), ("bottom", 0.72))
    for column, x in (("left", 0.28), ("", 0.5), ("right", 0.72))
} | {"center": (0.5, 0.5)}
PLACES.pop("")
#: Where and how large a thing alone is when nothing is said of it: then a sentence has one meaning,
#: and a small model need not choose between nine.
USUAL_PLACE, USUAL_SIZE = "center", "medium"
USUALLY = 0.35

SUPERSAMPLE = 4


@dataclass(frozen=True)
class Thing:
    """One shape: radius and centre are fractions of the picture's side."""

    shape: str
    colour: str
    size: str
    place: str
    radius: float
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    background: str
    things: tuple[Thing, ...]

    @property
    def held_out(self) -> bool:
        """Whether any (shape, colour, background) is one that training never shows."""
        return any(is_held_out(t.shape, t.colour, self.background) for t in self.things)


def is_held_out(shape: str, colour: str, background: str) -> bool:
    """One in eight triples, picked by a hash, is kept for scoring."""
    return zlib.crc32(f"{shape}/{colour}/{background}".encode()) % 8 == 0


def polygon(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape of radius 1 around (0, 0), y downwards."""
    if shape == "square":
        s = 0.86
        return [(-s, -s), (s, -s), (s, s), (-s, s)]
    if shape == "triangle":
        return [(0, -1), (1, 0.8), (-1, 0.8)]
    if shape == "star":
        turns = [(math.pi * i / 5 - math.pi / 2, 1.08 if i % 2 == 0 else 0.45) for i in range(10)]
        return [(r * math.cos(a), r * math.sin(a)) for a, r in turns]
    if shape == "cross":
        a, b = 0.32, 0.98
        return [
            (-a, -b),
            (a, -b),
            (a, -a),
            (b, -a),
            (b, a),
            (a, a),
            (a, b),
            (-a, b),
            (-a, a),
            (-b, a),
            (-b, -a),
            (-a, -a),
        ]
    if shape == "heart":
        turns = [2 * math.pi * i / 60 for i in range(60)]
        return [
            (
                math.sin(a) ** 3,
                -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a))
                / 16
                - 0.12,
            )
            for a in turns
        ]
    raise ValueError(f"{shape!r} is not drawn from corners")


def paint(canvas: ImageDraw.ImageDraw, thing: Thing, side: int, fill, background) -> None:
    """Paint one thing onto a canvas of ``side`` pixels."""
    x, y, r = thing.x * side, thing.y * side, thing.radius * side
    if thing.shape in ("circle", "ring"):
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        if thing.shape == "ring":
            r *= 0.52
            canvas.ellipse((x - r, y - r, x + r, y + r), fill=background)
        return
    canvas.polygon([(x + r * px, y + r * py) for px, py in polygon(thing.shape)], fill=fill)


def jittered(colour: str, rng: random.Random, amount: int = 6) -> tuple[int, int, int]:
    """The named colour, a little off in every channel."""
    r, g, b = (min(255, max(0, c + rng.randint(-amount, amount))) for c in COLOURS[colour])
    return r, g, b


def draw(scene: Scene, side: int, rng: random.Random) -> np.ndarray:
    """The picture of a scene, (side, side, 3) uint8."""
    big = side * SUPERSAMPLE
    background = jittered(scene.background, rng)
    picture = Image.new("RGB", (big, big), background)
    canvas = ImageDraw.Draw(picture)
    for thing in scene.things:
        paint(canvas, thing, big, jittered(thing.colour, rng), background)
    return np.asarray(picture.reduce(SUPERSAMPLE))


def random_thing(rng: random.Random, background: str, alone: bool) -> Thing:
    shape, size = rng.choice(SHAPES), rng.choice(list(SIZES) if alone else ["small", "medium"])
    colour = rng.choice([c for c in COLOURS if c != background])
    place = rng.choice(list(PLACES))
    if alone:
        place = USUAL_PLACE if rng.random() < USUALLY else place
        size = USUAL_SIZE if rng.random() < USUALLY else size
    radius = rng.uniform(*SIZES[size])
    px, py = PLACES[place]
    if size == "large":  # keep the whole shape inside
        px, py = 0.5 + (px - 0.5) * 0.7, 0.5 + (py - 0.5) * 0.7
    x, y = px + rng.uniform(-0.03, 0.03), py + rng.uniform(-0.03, 0.03)
    return Thing(shape, colour, size, place, radius, x, y)


def has_own_memory(a: Thing, b: Thing) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) > 1.15 * (a.radius + b.radius)


def random_scene(rng: random.Random, count: int | None = None, held_out: bool = False) -> Scene:
    """A scene of ``count`` things (one to three if None), held out from training or not."""
    while True:
        wanted = count or rng.choices((1, 2, 3), (0.7, 0.2, 0.1))[0]
        background = rng.choice(list(COLOURS))
        things = [random_thing(rng, background, wanted == 1) for _ in range(wanted)]
        clear = all(has_own_memory(a, b) for i, a in enumerate(things) for b in things[:i])
        scene = Scene(background, tuple(things))
        if clear and scene.held_out == held_out:
            return scene
