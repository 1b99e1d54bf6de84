"""Which layer has which precision, where one is not enough.

    {"fluxfit_precision_plan": 1, "precision": "int8",
     "layers": {"double_blocks.0.img_mod.lin": "bf16"}}

A plan is made by measurement (``calibration.sensitivity``), written as a small JSON file, accepted
wherever a precision is, and carried along in the files that are saved with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError
from ..files import LARGEST_JSON, parse_json, read_text, reason
from .registry import full_dtype

MARK, VERSION = "fluxfit_precision_plan", 1


@dataclass(frozen=True)
class PrecisionPlan:
    """A precision for every layer but those named, which have their own.

    Raises ``ValueError`` for a precision that does not exist.
    """

    precision: str
    layers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for precision in (self.precision, *self.layers.values()):
            full_dtype(precision)

    def of(self, layer: str) -> str:
        """The precision of a layer by its native name."""
        return self.layers.get(layer, self.precision)

    def to_json(self) -> str:
        plan = {MARK: VERSION, "precision": self.precision, "layers": dict(self.layers)}
        return json.dumps(plan, indent=1)

    @classmethod
    def from_json(cls, text: str, where: str = "the plan") -> PrecisionPlan:
        """Read a plan; raises ``ValueError`` naming ``where`` it came from."""
        try:
            plan = parse_json(text)
            if plan.get(MARK) != VERSION:
                raise ValueError(f"expected {MARK!r}: {VERSION}, found {plan.get(MARK)!r}")
            precision, layers = plan["precision"], plan.get("layers", {})
            if not isinstance(layers, dict):
                raise ValueError(
                    f"'layers' is {type(layers).__name__}, expected names to precisions"
                )
            return cls(precision, layers)
        except Exception as error:  # whatever is wrong with it, that is the reason
            raise ConfigError(f"{where} is no precision plan: {reason(error)}") from error

    @classmethod
    def of_layers(
        cls, precisions: Mapping[str, str], kept: Mapping[str, str] = {}
    ) -> PrecisionPlan:
        """The plan of layers that are held so: the commonest of ``precisions`` stands for all."""
        names = list(precisions.values()) or ["bf16"]
        most = max(sorted(set(names)), key=names.count)
        return cls(most, {name: p for name, p in precisions.items() if p != most} | dict(kept))

    @classmethod
    def load(cls, path: str | Path) -> PrecisionPlan:
        """Read a plan from a file; raises ``ValueError`` naming it."""
        return cls.from_json(read_text(path, limit=LARGEST_JSON), str(path))


#: What a loader takes: one precision for all layers, or a plan.
Precision = str | PrecisionPlan


def precision_name(precision: Precision) -> str:
    """A precision in a word; a plan with exceptions with the hash of what it says."""
    plan = as_plan(precision)
    if not plan.layers:
        return plan.precision
    digest = hashlib.sha256(plan.to_json().encode()).hexdigest()[:12]
    return f"{plan.precision}, {len(plan.layers)} layers otherwise (plan {digest})"


def as_plan(precision: Precision) -> PrecisionPlan:
    """A plan for either; raises ``ValueError`` for a name that does not exist."""
    return precision if isinstance(precision, PrecisionPlan) else PrecisionPlan(precision)
