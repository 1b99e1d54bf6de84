"""How much a LoRA counts in each block of a model, as numbers, as rules or by a preset's name.

    double 0-9: 1, single 10-37: 0.5, outside: 0, else 0     rules; of two for a block the later one
    1, 1, 0.5, ...                                           a number a block, double blocks first
    style                                                    a preset

Blocks are numbered from 0. ``outside`` are layers that are in no block (``img_in``, ``final_layer``
and the like), ``else`` is what no other rule names, 1 where it is not there. ``clip_l``, ``t5`` and
``text`` (both) are the text encoders, which no other rule is about.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ..bounds import brief, check_number

DOUBLE, SINGLE, OUTSIDE, TEXT, ELSE = "double", "single", "outside", "text", "else"
ENCODERS = ("clip_l", "t5")
KINDS = (DOUBLE, SINGLE, OUTSIDE, *ENCODERS, TEXT, ELSE)
#: What block weights are called in messages.
NAME = "a LoRA's block weights"
#: Rules by name, for FLUX.1's 19 double and 38 single blocks where they name blocks. What a block
#: is for is folklore: thirds of the double blocks and single 7 and 20 are what people train alone.
PRESETS = {
    "all": "else: 1",
    "double": "double: 1, else: 0",
    "single": "single: 1, else: 0",
    "double front": "double 0-5: 1, else: 0",
    "double mid": "double 6-11: 1, else: 0",
    "double tail": "double 12-18: 1, else: 0",
    "composition": "double 0-3: 1, else: 0",
    "subject": "double 4-7: 1, else: 0",
    "style": "double 10-18: 1, single: 1, else: 0",
    "face": "single 7: 1, single 20: 1, else: 0",
}
BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.")
RULE = re.compile(r"([a-z_0-9]+?)(?:\s+(\d+)(?:\s*-\s*(\d+))?)?\s*[:=]\s*(\S+)")
PLAIN_ELSE = re.compile(r"else\s+(\S+)")
#: Rules and numbers in one text.
MOST_RULES = 1000


@dataclass(frozen=True)
class BlockRule:
    """A weight for layers of a kind; for blocks those numbered ``first`` to ``last``, or all."""

    kind: str
    weight: float
    first: int | None = None
    last: int | None = None

    def __str__(self) -> str:
        if self.first is None:
            return self.kind
        return f"{self.kind} {self.first}" + ("" if self.first == self.last else f"-{self.last}")

    def is_for(self, kind: str, index: int) -> bool:
        """Whether it is about a layer of a kind, in the block of a number."""
        if kind != self.kind:
            return False
        return self.first is None or self.last is None or self.first <= index <= self.last


@dataclass(frozen=True)
class BlockCounts:
    """Blocks of each kind that a model has."""

    double: int
    single: int

    @classmethod
    def of(cls, model: nn.Module) -> BlockCounts:
        """Those of a transformer; none of anything else."""
        counts = (getattr(model, f"{kind}_blocks", ()) for kind in (DOUBLE, SINGLE))
        return cls(*(len(blocks) for blocks in counts))

    @property
    def total(self) -> int:
        return self.double + self.single


@dataclass(frozen=True)
class BlockWeights:
    """Weights that a LoRA's strength is multiplied with, by layer: ``rules``, or ``numbers``, one
    of each block, with one for the layers outside before them or not."""

    rules: tuple[BlockRule, ...] = ()
    numbers: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.numbers) > MOST_RULES or len(self.rules) > MOST_RULES:
            raise ValueError(f"{NAME} are more than {MOST_RULES}")
        for place, number in enumerate(self.numbers):
            check_number(number, f"{NAME}: number {place}", -1000, 1000)
        for rule in self.rules:
            check_number(rule.weight, f"{NAME}: {rule}", -1000, 1000)

    @classmethod
    def parse(cls, text: str) -> BlockWeights:
        """Read rules, numbers or a preset's name; raises ``ValueError`` naming what is wrong."""
        text = PRESETS.get(" ".join(text.lower().split()), text)
        entries = [entry.strip() for entry in re.split(r"[,;\n]", text)]
        entries = [entry for entry in entries if entry]
        if not entries:
            raise ValueError(f"{NAME} are empty, expected rules, numbers or a preset")
        numbers = [as_number(entry) for entry in entries]
        if None not in numbers:
            return cls(numbers=tuple(number for number in numbers if number is not None))
        return cls(rules=tuple(rule_of(entry) for entry in entries))

    @classmethod
    def of(cls, value: BlockWeights | str | Sequence[float] | None) -> BlockWeights | None:
        """Weights as they are, of their text, or of their numbers."""
        if value is None or isinstance(value, BlockWeights):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        if not isinstance(value, Sequence):
            raise ValueError(f"{NAME} are {brief(value)}, expected a text or numbers")
        return cls(numbers=tuple(value))

    def check(self, counts: BlockCounts) -> None:
        """Raise ``ValueError`` where a model with so many blocks has none of those that are
        named, or another number of them."""
        if self.numbers and len(self.numbers) - counts.total not in (0, 1):
            raise ValueError(
                f"{NAME} are {len(self.numbers)} numbers, expected {counts.total} for this model's "
                f"{counts.double} double and {counts.single} single blocks, or one more before "
                "them for the layers outside"
            )
        for rule in self.rules:
            if rule.last is None:
                continue
            have = counts.double if rule.kind == DOUBLE else counts.single
            if rule.last >= have:
                raise ValueError(
                    f"{NAME}: {rule} is past this model's last one, expected {rule.kind} 0-"
                    f"{have - 1}"
                )

    def weight(self, layer: str, part: str, counts: BlockCounts) -> float:
        """What counts in a layer of a part (``transformer``, ``clip_l`` or ``t5``)."""
        if part in ENCODERS:
            return self.ruled((part, TEXT), 0, 1.0)
        kind, index = OUTSIDE, 0
        if match := BLOCK.match(layer):
            kind, index = match[1], int(match[2])
        if self.numbers:
            before = len(self.numbers) - counts.total
            if kind == OUTSIDE:
                return self.numbers[0] if before else 1.0
            return self.numbers[before + index + (counts.double if kind == SINGLE else 0)]
        return self.ruled((kind,), index, self.ruled((ELSE,), 0, 1.0))

    def ruled(self, kinds: Sequence[str], index: int, otherwise: float) -> float:
        """The weight of the last rule that is about one of some kinds."""
        fitting = (r.weight for r in reversed(self.rules) if any(r.is_for(k, index) for k in kinds))
        return next(fitting, otherwise)

    @property
    def on_text(self) -> bool:
        """Whether it says something of text encoders."""
        return any(rule.kind in (*ENCODERS, TEXT) for rule in self.rules)


def as_number(text: str) -> float | None:
    """A number; None where the text is none."""
    try:
        return float(text)
    except ValueError:
        return None


def rule_of(entry: str) -> BlockRule:
    """One rule; raises ``ValueError`` naming it where it is none."""
    match = RULE.fullmatch(entry.lower())
    kind, first, last, weight = match.groups() if match else (None, None, None, None)
    if match is None and (plain := PLAIN_ELSE.fullmatch(entry.lower())):
        kind, weight = ELSE, plain[1]
    if kind not in KINDS or weight is None:
        raise ValueError(
            f"{NAME}: {brief(entry)} is no rule, expected one such as double 0-9: 0.5, of "
            f"{', '.join(KINDS)}, or alone one of the presets {', '.join(PRESETS)}"
        )
    number = as_number(weight)
    if number is None:
        raise ValueError(f"{NAME}: {brief(entry)} has the weight {weight!r}, expected a number")
    if first is None:
        return BlockRule(kind, number)
    if kind not in (DOUBLE, SINGLE):
        raise ValueError(f"{NAME}: {brief(entry)} numbers what has no blocks")
    begin, end = int(first), int(last or first)
    if begin > end:
        raise ValueError(f"{NAME}: {brief(entry)} begins after its end")
    return BlockRule(kind, number, begin, end)
