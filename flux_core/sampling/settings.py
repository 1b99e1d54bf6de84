"""How a run goes: seed, steps, sampler and schedule, and the noise and sigmas that they give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..bounds import MOST_SEED, brief, check_number
from ..models.families import family_of
from ..models.transformer import FluxTransformer
from .guidance import PLAIN_GUIDANCE, GuidanceOptions
from .latents import host_noise, image_tokens
from .samplers import SAMPLERS
from .sigmas import SHIFTS, SigmaTable, check_steps, make_sigmas, table_for, wrong_shift
from .tiles import Tiling


class NoiseSchedule(NamedTuple):
    """Where a run starts and how it goes.

    ``noise`` is (B, 16, h, w), standard normal; ``sigmas`` are (steps + 1,), falling; ``table`` is
    the shift behind them, for the span of controls.
    """

    noise: Tensor
    sigmas: Tensor
    table: SigmaTable


def checked_seed(seed: Any) -> int:
    """A seed, of numpy it may be; raises ``ValueError`` for anything else."""
    check_number(seed, "seed", 0, MOST_SEED, whole=True)
    return int(seed)


@dataclass(frozen=True, eq=False)
class SamplingSettings:
    """How a run goes; names and numbers are checked when it is made (``ValueError``).

    ``seed``: of all pictures, or one for each, whose noise is then what it would be alone.
    ``cfg``: true classifier-free guidance, 1 leaves the negative prompt out. ``sigmas`` (steps +
    1,) stand in the place of ``steps``, ``scheduler`` and ``denoise``; they may end above 0, and
    another run goes on from there. ``batch_index``: which picture of a larger batch each row is, so
    that it gets that one's noise. ``add_noise``: False goes on with latents that hold noise.
    ``guidance_options``: over which steps and how the negative prompt is guided away from.
    """

    seed: int | Sequence[int] = 0
    steps: int = 20
    cfg: float = 1.0
    sampler: str = "euler"
    scheduler: str = "simple"
    shift: str = "host"
    denoise: float = 1.0
    sigmas: Tensor | None = None
    batch_index: Sequence[int] | None = None
    add_noise: bool = True
    guidance_options: GuidanceOptions = PLAIN_GUIDANCE

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, str) or self.sampler not in SAMPLERS:
            expected = f"expected one of {', '.join(SAMPLERS)}"
            raise ValueError(f"sampler is {brief(self.sampler)}, {expected}")
        if not isinstance(self.shift, str) or self.shift not in SHIFTS:
            raise wrong_shift(self.shift)
        check_steps(self.scheduler, self.steps, self.denoise)
        if isinstance(self.seed, list | tuple):
            object.__setattr__(self, "seed", tuple(map(checked_seed, self.seed)))
        else:
            object.__setattr__(self, "seed", checked_seed(self.seed))
        check_number(self.cfg, "cfg", -1000, 1000)
        if not isinstance(self.guidance_options, GuidanceOptions):
            value = brief(self.guidance_options)
            raise ValueError(f"guidance_options is {value}, expected GuidanceOptions")

    def noise_schedule(
        self, transformer: FluxTransformer, shape: Sequence[int], tiles: Tiling | None = None
    ) -> NoiseSchedule:
        """The host's noise and sigmas for latents of a shape (B, 16, h, w); a shift that depends on
        the size goes by what the model sees at once, which ``tiles`` make smaller."""
        height, width = shape[-2], shape[-1]
        family = family_of(transformer)
        if tiles is not None:
            height, width = tiles.window_size(height, width, family.tokens)
        tokens = image_tokens(height, width, geometry=family.tokens)
        table = table_for(family, self.shift, tokens, self.steps)
        sigmas = self.sigmas
        if sigmas is None:
            sigmas = make_sigmas(table, self.scheduler, self.steps, self.denoise)
        noise = torch.zeros(tuple(shape))
        if self.add_noise:
            noise = host_noise(shape, self.seed, self.batch_index)
        return NoiseSchedule(noise, sigmas, table)
