"""Sigmas: how much noise is left before every step, from 1 (pure noise) to 0.

    shift(mu, t) = e^mu / (e^mu + 1/t - 1)

Four ways to place the steps (``SCHEDULERS``) over a table of shifted sigmas, both as ComfyUI
computes them, so that the same settings give the same steps there. The table depends on the shift
alone: the family's in the host's default (1.15 for dev, none for schnell), growing with the number
of image tokens as the family was trained, or DiffSynth-Studio's factor 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..bounds import MOST_STEPS, brief, check_number
from ..models.family import Family

BASE_SHIFT, MAX_SHIFT = 0.5, 1.15  # exponents at 256 and at 4096 image tokens
BASE_TOKENS, MAX_TOKENS = 256, 4096
ENTRIES = 10_000  # of a table whose length is nobody's
DIFFSYNTH_FACTOR = 3.0
#: Steps of a whole schedule of which the last are taken.
MOST_SCHEDULE = 1_000_000
#: Sigmas that a message shows.
SHOWN = 8


@dataclass(frozen=True)
class SigmaTable:
    """Shifted sigmas at evenly spaced times; ``mu`` is the exponent of the shift, 0 for none."""

    mu: float
    size: int = ENTRIES

    def sigma(self, t: Tensor) -> Tensor:
        """The shifted sigmas at times t in (0, 1], of any shape (...)."""
        if self.mu == 0:
            return t
        return math.exp(self.mu) / (math.exp(self.mu) + (1 / t - 1))

    def time(self, sigma: float) -> float:
        """The time in [0, 1] of a shifted sigma; the inverse of ``sigma``."""
        if self.mu == 0 or sigma <= 0:
            return max(0.0, sigma)
        return 1 / (1 + math.exp(self.mu) * (1 / sigma - 1))

    @property
    def sigmas(self) -> Tensor:
        """All of them, rising, (size,)."""
        return self.sigma(torch.arange(1, self.size + 1) / self.size)


def table_for(
    family: Family, shift: str = "host", tokens: int = MAX_TOKENS, steps: int = 20
) -> SigmaTable:
    """The table for a model and a way of shifting.

    Args:
        family: of the model; its own shift is the host's.
        shift: ``host``; ``resolution``, as the family was trained, for FLUX.1 from 0.5 at 256
            image tokens to 1.15 at 4096; or ``diffsynth``, a fixed factor of 3.
        tokens: image tokens, a 256th of the pixels.
        steps: of the run, which the shift of some families depends on.
    """
    if shift == "host":
        return SigmaTable(family.sigma_shift, family.sigma_entries)
    if shift == "resolution" and family.resolution_shift is not None:
        return SigmaTable(family.resolution_shift(tokens, steps), family.sigma_entries)
    if shift == "resolution":
        return resolution_table(tokens)
    if shift == "diffsynth":
        return SigmaTable(math.log(DIFFSYNTH_FACTOR))
    raise wrong_shift(shift)


def wrong_shift(shift: str) -> ValueError:
    return ValueError(f"shift is {shift!r}, expected one of {', '.join(SHIFTS)}")


def resolution_mu(tokens: float, base: float = BASE_SHIFT, most: float = MAX_SHIFT) -> float:
    """The exponent for so many image tokens, from ``base`` at 256 to ``most`` at 4096."""
    slope = (most - base) / (MAX_TOKENS - BASE_TOKENS)
    return tokens * slope + (base - slope * BASE_TOKENS)


def resolution_table(tokens: int) -> SigmaTable:
    """The table for so many image tokens, as FLUX.1 was trained."""
    return SigmaTable(resolution_mu(tokens))


SHIFTS = ("host", "resolution", "diffsynth")


def simple(table: SigmaTable, steps: int) -> list[float]:
    """Every n-th entry of the table, from its end."""
    sigmas, stride = table.sigmas, table.size / steps
    return [float(sigmas[-(1 + int(i * stride))]) for i in range(steps)] + [0.0]


def normal(table: SigmaTable, steps: int) -> list[float]:
    """Evenly spaced between the table's ends, and shifted."""
    sigmas = table.sigmas
    start, end = sigmas[-1], sigmas[0]
    ends_at_zero = math.isclose(float(table.sigma(end)), 0, abs_tol=1e-5)
    times = torch.linspace(float(start), float(end), steps + ends_at_zero)
    return [float(table.sigma(t)) for t in times] + ([] if ends_at_zero else [0.0])


def sgm_uniform(table: SigmaTable, steps: int) -> list[float]:
    """As ``normal``, the last point left out."""
    sigmas = table.sigmas
    times = torch.linspace(float(sigmas[-1]), float(sigmas[0]), steps + 1)[:-1]
    return [float(table.sigma(t)) for t in times] + [0.0]


def beta(table: SigmaTable, steps: int, a: float = 0.6, b: float = 0.6) -> list[float]:
    """Quantiles of a beta distribution, dense at both ends (arXiv:2407.12173)."""
    from scipy.stats import beta as beta_distribution

    sigmas = table.sigmas
    places = 1 - np.linspace(0, 1, steps, endpoint=False)
    indices = np.rint(beta_distribution.ppf(places, a, b) * (table.size - 1)).astype(int)
    kept = [i for n, i in enumerate(indices) if n == 0 or i != indices[n - 1]]
    return [float(sigmas[i]) for i in kept] + [0.0]


SCHEDULERS: dict[str, Callable[[SigmaTable, int], list[float]]] = {
    "simple": simple,
    "normal": normal,
    "beta": beta,
    "sgm_uniform": sgm_uniform,
}


def check_steps(scheduler: str, steps: int, denoise: float) -> None:
    """Raise ``ValueError`` for what ``make_sigmas`` cannot make."""
    if not isinstance(scheduler, str) or scheduler not in SCHEDULERS:
        raise ValueError(
            f"scheduler is {brief(scheduler)}, expected one of {', '.join(SCHEDULERS)}"
        )
    check_number(steps, "steps", 1, MOST_STEPS, whole=True)
    check_number(denoise, "denoise", 0, 1)
    if not denoise or steps / denoise > MOST_SCHEDULE:
        raise ValueError(
            f"denoise is {denoise}, expected more than 0 and at most {MOST_SCHEDULE} steps in "
            f"{steps} / denoise"
        )


def check_sigmas(sigmas: Tensor) -> None:
    """Raise ``ValueError`` for sigmas (steps + 1,) that do not fall from noise to a picture; fewer
    than two are no step."""
    if sigmas.ndim != 1:
        raise ValueError(f"sigmas have shape {tuple(sigmas.shape)}, expected (steps + 1,)")
    if len(sigmas) > MOST_STEPS + 1:
        raise ValueError(f"sigmas are {len(sigmas)}, expected at most {MOST_STEPS + 1}")
    if not bool(sigmas.isfinite().all()) or bool((sigmas < 0).any()):
        raise ValueError(f"sigmas are {shown(sigmas)}, expected numbers of at least 0")
    if bool((sigmas.diff() > 0).any()):
        raise ValueError(f"sigmas are {shown(sigmas)}, expected them to fall")
    if bool((sigmas[:-1] == 0).any()):
        raise ValueError(f"sigmas are {shown(sigmas)}, expected 0 only at the end")


def shown(sigmas: Tensor) -> str:
    """The first sigmas of (steps + 1,), for a message."""
    more = ", ..." if len(sigmas) > SHOWN else ""
    return ", ".join(f"{float(sigma):g}" for sigma in sigmas[:SHOWN]) + more


def make_sigmas(table: SigmaTable, scheduler: str, steps: int, denoise: float = 1.0) -> Tensor:
    """Sigmas (steps + 1,) float32, falling to 0.

    With ``denoise`` below 1 the last ``steps`` of ``steps / denoise`` are taken, as the host does:
    the number of steps stays, and the first sigma falls. Raises ``ValueError`` for zero steps, an
    unknown scheduler, or a denoise outside (0, 1].
    """
    check_steps(scheduler, steps, denoise)
    if denoise > 0.9999:
        return torch.tensor(SCHEDULERS[scheduler](table, steps))
    return torch.tensor(SCHEDULERS[scheduler](table, int(steps / denoise)))[-(steps + 1) :]
