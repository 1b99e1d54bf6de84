"""Edits of scenes: what is changed, how it is asked for, and whether a picture shows it.

An edit changes one thing's colour or shape, or the background; everything else stays as it was,
down to how far off its colour is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from tools.pocket.captions import SHAPE_WORDS, article
from tools.pocket.checker import look
from tools.pocket.scenes import COLOURS, SHAPES, Scene, draw, random_scene

COLOUR, SHAPE, BACKGROUND = KINDS = ("colour", "shape", "background")
#: Share of each kind of edit in the training data.
SHARES = (0.5, 0.2, 0.3)
#: Furthest that what was not to change may move, in shares of the side.
FURTHEST = 0.06

#: Sentences for a picture of one thing, and for one of several, by kind.
ALONE = {
    COLOUR: (
        "make it {value}",
        "make it {value}",
        "turn it {value}",
        "paint it {value}",
        "change its color to {value}",
    ),
    SHAPE: ("make it {a_value}", "turn it into {a_value}", "change it to {a_value}"),
    BACKGROUND: ("put it on {a_value} background", "put it on {value}"),
}
NAMED = {
    COLOUR: (
        "make the {thing} {value}",
        "turn the {thing} {value}",
        "paint the {thing} {value}",
        "change the color of the {thing} to {value}",
    ),
    SHAPE: (
        "turn the {thing} into {a_value}",
        "replace the {thing} with {a_value}",
        "make the {thing} {a_value}",
    ),
    BACKGROUND: (
        "make the background {value}",
        "change the background to {value}",
        "{value} background",
    ),
}


@dataclass(frozen=True)
class Edit:
    """One attribute's new value; ``thing`` is whose, where it is not the background's."""

    kind: str
    value: str
    thing: int = 0

    def apply(self, scene: Scene) -> Scene:
        """The scene after it."""
        if self.kind == BACKGROUND:
            return replace(scene, background=self.value)
        things = list(scene.things)
        things[self.thing] = replace(things[self.thing], **{self.kind: self.value})
        return replace(scene, things=tuple(things))

    def undo(self, scene: Scene) -> Edit:
        """The edit that gives back ``scene``, to which this one was applied."""
        old = (
            scene.background
            if self.kind == BACKGROUND
            else getattr(scene.things[self.thing], self.kind)
        )
        return replace(self, value=old)

    def sentence(self, scene: Scene, rng: random.Random) -> str:
        """What to say to have ``scene`` edited so."""
        alone = len(scene.things) == 1 and rng.random() < 0.6
        value = self.value
        if self.kind == SHAPE:
            value = rng.choice(SHAPE_WORDS[value])
        noun = rng.choice(SHAPE_WORDS[scene.things[self.thing].shape])
        form = rng.choice((ALONE if alone else NAMED)[self.kind])
        text = form.format(value=value, a_value=article(value), thing=noun)
        if rng.random() < 0.5:
            text = text[0].upper() + text[1:] + rng.choice(("", "."))
        return text


def random_edit(scene: Scene, rng: random.Random, kind: str | None = None) -> Edit:
    """An edit after which everything can still be seen and named."""
    kind = kind or rng.choices(KINDS, SHARES)[0]
    number = rng.randrange(len(scene.things))
    used = {scene.background, *(thing.colour for thing in scene.things)}
    shapes = {thing.shape for thing in scene.things}
    taken, values = (shapes, SHAPES) if kind == SHAPE else (used, tuple(COLOURS))
    return Edit(kind, rng.choice([v for v in values if v not in taken]), number)


def editable_scene(rng: random.Random, held_out: bool = False, things: int | None = None) -> Scene:
    """A scene of one or two things, of different shapes."""
    while True:
        scene = random_scene(rng, things or rng.choices((1, 2), (0.75, 0.25))[0], held_out)
        if len({thing.shape for thing in scene.things}) == len(scene.things):
            return scene


def drawn_alike(scenes: list[Scene], side: int, seed: str) -> np.ndarray:
    """Pictures (B, side, side, 3) uint8 of scenes, with the same random numbers for each."""
    return np.stack([draw(scene, side, random.Random(seed)) for scene in scenes])


def shows(picture: np.ndarray, scene: Scene) -> bool:
    """Whether a picture (H, W, 3) uint8 shows a scene: background, and shapes with their colours in
    their places, by its pixels."""
    background, seen = look(picture)
    if background != scene.background or len(seen) != len(scene.things):
        return False
    return all(
        any(
            (sight.shape, sight.colour) == (thing.shape, thing.colour)
            and max(abs(sight.x - thing.x), abs(sight.y - thing.y)) < FURTHEST
            for sight in seen
        )
        for thing in scene.things
    )
