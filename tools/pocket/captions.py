"""Sentences about scenes, written in many ways, and the attributes that a reader should find.

``describe`` says a scene in words and returns what it said, so that text encoders can be trained to
understand exactly the sentence: an attribute that was not mentioned is ``UNSAID``.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tools.pocket.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    USUAL_PLACE,
    USUAL_SIZE,
    Scene,
    Thing,
)

UNSAID = "unsaid"
MOST_THINGS = 3
#: What is told of every thing, with the answers that are possible.
THING_ATTRIBUTES = {
    "shape": (UNSAID, *SHAPES),
    "colour": (UNSAID, *COLOURS),
    "size": (UNSAID, *SIZES),
    "place": (UNSAID, *PLACES),
}
ATTRIBUTES = {"background": (UNSAID, *COLOURS)} | {
    f"{name}{i}": answers for i in range(MOST_THINGS) for name, answers in THING_ATTRIBUTES.items()
}

SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "dot"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star", "star", "five-pointed star"),
    "heart": ("heart", "heart", "heart shape"),
    "cross": ("cross", "plus sign"),
    "ring": ("ring", "ring", "hoop", "donut"),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
}
OPENINGS = (
    "",
    "",
    "",
    "a picture of ",
    "an image of ",
    "a drawing of ",
    "there is ",
    "draw ",
    "please draw ",
    "i want ",
    "an illustration of ",
    "show me ",
    "imagine ",
)
BACKGROUNDS = (
    "{} on {} {c} background",
    "{} on {} {c} background",
    "{} on {c}",
    "{} against {c}",
    "{} in front of {} {c} background",
    "{} over {} {c} backdrop",
    "{}, {c} background",
    "{} with {} {c} background",
    "{}, the background is {c}",
    "on {} {c} background, {}",
    "{} on top of {c}",
)


@dataclass(frozen=True)
class Caption:
    text: str
    answers: dict[str, str]


def article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def place_phrase(place: str, rng: random.Random) -> str:
    if place == "center":
        return rng.choice(("in the center", "in the middle", "at the center"))
    if " " in place:
        form = rng.choice(("in the {} corner", "at the {}", "in the {}", "on the {}"))
        joint = rng.choice((" ", " ", "-"))
        return form.format(place.replace(" ", joint))
    if place in ("left", "right"):
        return rng.choice(("on the {}", "at the {}", "on the {} side", "to the {}")).format(place)
    return rng.choice(("at the {}", "near the {}", "on the {}")).format(place)


def thing_phrase(thing: Thing, rng: random.Random, crowd: bool) -> tuple[str, dict[str, str]]:
    """One thing in words. What goes without saying is often left out: a thing alone in the middle,
    of medium size. In a crowd less is said of sizes, and of most places."""
    answers = {"shape": thing.shape, "colour": thing.colour, "size": UNSAID, "place": UNSAID}
    noun = rng.choice(SHAPE_WORDS[thing.shape])
    size = ""
    unusual = not crowd and thing.size != USUAL_SIZE
    if unusual or rng.random() < 0.3:
        answers["size"] = thing.size
        size = rng.choice(SIZE_WORDS[thing.size]) + " "
    form = rng.random()
    if form < 0.8:
        phrase = article(f"{size}{thing.colour} {noun}")
    elif form < 0.9:
        phrase = article(f"{size}{noun} that is {thing.colour}")
    else:
        phrase = article(f"{size}{noun} in {thing.colour}")
    unusual = not crowd and thing.place != USUAL_PLACE
    if unusual or rng.random() < (0.8 if crowd else 0.3):
        answers["place"] = thing.place
        phrase = f"{phrase} {place_phrase(thing.place, rng)}"
    return phrase, answers


def relation(a: Thing, b: Thing, rng: random.Random) -> str:
    """How a lies to b, or only that both are there."""
    choices = [" and ", " and ", " next to ", " with "]
    if abs(a.x - b.x) > 0.2 and abs(a.x - b.x) > abs(a.y - b.y):
        choices += [" to the left of " if a.x < b.x else " to the right of "] * 2
    elif abs(a.y - b.y) > 0.2:
        choices += [" above " if a.y < b.y else " below "] * 2
    return rng.choice(choices)


def describe(scene: Scene, rng: random.Random) -> Caption:
    """A sentence about a scene, and what it says, by ``ATTRIBUTES``."""
    answers = dict.fromkeys(ATTRIBUTES, UNSAID)
    crowd = len(scene.things) > 1
    phrases = []
    for i, thing in enumerate(scene.things):
        phrase, facts = thing_phrase(thing, rng, crowd)
        phrases.append(phrase)
        answers |= {f"{name}{i}": answer for name, answer in facts.items()}
    if len(phrases) == 2:
        text = relation(*scene.things, rng).join(phrases)
    else:
        text = ", ".join(phrases[:-1]) + (" and " if phrases[:-1] else "") + phrases[-1]
    opening = rng.choice(OPENINGS)
    if rng.random() < 0.93:
        form = rng.choice(BACKGROUNDS)
        answers["background"] = scene.background
        back = article(scene.background).split(" ")[0]
        named = form.startswith("on {}")
        text = form.format(*((back, text) if named else (text, back)), c=scene.background)
        opening = "" if named else opening
    text = opening + text
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:] + rng.choice(("", "."))
    return Caption(text, answers)
