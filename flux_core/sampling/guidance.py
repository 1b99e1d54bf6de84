"""Guidance away from a negative prompt: over which steps, and what is made of both predictions.

    CFG             u + cfg (c - u)
    CFG-Zero*       u of another length: v_u <- a v_u,  a = <v_c, v_u> / |v_u|^2
    zero init       v = 0 in the first steps, for which the model is not asked
    rescale         v of the deviation that v_c has, blended with what it was
    positive bias   blended towards cfg c, the more the less both agree
    threshold       mean + clamp(g - mean, -s, s) m / s,   s = max(q, m): q the percentile of |g -
                    mean|, m the largest of it for g' of the mimicked scale instead of cfg

CFG-Zero* and zero init: arXiv:2503.18886; rescale: arXiv:2305.08891; the bias is the host's Mahiro.
Thresholding is Imagen's (arXiv:2205.11487, section 2.3) with the range of a smaller scale in the
place of a picture's: the defaults of github.com/mcmonkeyprojects/sd-dynamic-thresholding.
c and u are the pictures (B, C, h, w) that the model sees with either prompt, v = (x - picture) /
sigma its velocities. NAG, which needs no second prediction, is in ``nag``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..bounds import MOST_STEPS, brief, check_number, check_span
from .nag import NormalizedAttentionGuidance

#: What is scaled in CFG-Zero*: velocities, as the paper has it, or pictures, as the host's node.
CFG_ZERO = ("off", "velocity", "picture")
#: A range is taken for at least this.
LEAST = 1e-12


@dataclass(frozen=True)
class GuidanceOptions:
    """How a negative prompt is guided away from, beside the strength ``cfg``.

    Outside of ``start`` to ``end``, shares of the schedule from 0 (noise) to 1, the positive prompt
    is drawn alone, as with cfg 1, and the negative one costs nothing. ``cfg_zero`` is one of
    ``CFG_ZERO``; ``zero_steps`` first steps leave the noise as it is, whatever cfg. ``rescale`` in
    [0, 1]. With a ``mimic_scale`` the guided picture is thresholded dynamically: each channel of
    each picture is given the range that this smaller cfg would give it, what lies beyond the
    ``threshold_percentile``, in [0, 1], being cut off. ``nag`` reads the negative prompt at any
    cfg.

    Raises ``ValueError`` for names and numbers out of range.
    """

    start: float = 0.0
    end: float = 1.0
    cfg_zero: str = "off"
    zero_steps: int = 0
    rescale: float = 0.0
    positive_bias: bool = False
    mimic_scale: float | None = None
    threshold_percentile: float = 1.0
    nag: NormalizedAttentionGuidance | None = None

    def __post_init__(self) -> None:
        check_span(self.start, self.end, "guidance's")
        if self.cfg_zero not in CFG_ZERO:
            expected = ", ".join(CFG_ZERO)
            raise ValueError(f"cfg_zero is {brief(self.cfg_zero)}, expected one of {expected}")
        check_number(self.zero_steps, "zero_steps", 0, MOST_STEPS, whole=True)
        check_number(self.rescale, "rescale", 0, 1)
        if self.mimic_scale is not None:
            check_number(self.mimic_scale, "mimic_scale", 0, 1000)
        check_number(self.threshold_percentile, "threshold_percentile", 0, 1)
        if self.nag is not None and not isinstance(self.nag, NormalizedAttentionGuidance):
            raise ValueError(
                f"nag is {brief(self.nag)}, expected a NormalizedAttentionGuidance or None"
            )

    def zero_sigma(self, sigmas: Tensor) -> float:
        """The sigma above which nothing is drawn yet, of ``sigmas`` (steps + 1,); raises
        ``ValueError`` where that would be all steps."""
        if not self.zero_steps or len(sigmas) < 2:
            return math.inf
        if self.zero_steps >= len(sigmas) - 1:
            raise ValueError(
                f"zero_steps is {self.zero_steps}, expected fewer than the {len(sigmas) - 1} steps"
            )
        return float(sigmas[self.zero_steps])

    def combine(self, x: Tensor, ours: Tensor, theirs: Tensor, cfg: float) -> Tensor:
        """The guided picture (B, C, h, w) at x (B, C, h, w), from those of the positive and the
        negative prompt, each (B, C, h, w)."""
        unscaled = theirs
        if self.cfg_zero != "off":
            scale = projected_scale(x - ours, x - theirs)
            theirs = scale * theirs if self.cfg_zero == "picture" else x - scale * (x - theirs)
        guided = theirs + cfg * (ours - theirs)
        if self.mimic_scale is not None:
            mimicked = theirs + self.mimic_scale * (ours - theirs)
            guided = thresholded(guided, mimicked, self.threshold_percentile)
        if self.rescale:
            guided = x - rescaled(x - guided, x - ours, self.rescale)
        if self.positive_bias:
            guided = biased(guided, ours, unscaled, cfg)
        return guided


#: Plain guidance over the whole schedule.
PLAIN_GUIDANCE = GuidanceOptions()


def projected_scale(ours: Tensor, theirs: Tensor) -> Tensor:
    """How long ``ours`` (B, C, h, w) is along ``theirs`` (B, C, h, w), in lengths of the latter:
    (B, 1, 1, 1)."""
    product = (ours * theirs).sum((1, 2, 3), keepdim=True)
    return product / (theirs.square().sum((1, 2, 3), keepdim=True) + 1e-8)


def thresholded(guided: Tensor, mimicked: Tensor, percentile: float) -> Tensor:
    """A guided picture (B, C, h, w) in the range of another one (B, C, h, w), around its own means;
    means, percentile and range are those of each channel of each picture."""
    means = guided.mean((2, 3), keepdim=True)
    centered = guided - means
    size = centered.abs().flatten(2)
    reach = size.amax(2) if percentile == 1 else size.quantile(percentile, dim=2)
    span = (mimicked - mimicked.mean((2, 3), keepdim=True)).abs().amax((2, 3), keepdim=True)
    bound = torch.maximum(reach[..., None, None], span).clamp_min(LEAST)
    return centered.clamp(-bound, bound) * (span / bound) + means


def rescaled(guided: Tensor, ours: Tensor, share: float) -> Tensor:
    """Velocities (B, C, h, w), ``share`` of them with the deviation of ``ours`` (B, C, h, w)."""
    factor = ours.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
    return guided * (share * factor + (1 - share))


def biased(guided: Tensor, ours: Tensor, theirs: Tensor, cfg: float) -> Tensor:
    """A guided picture (B, C, h, w), blended with ``cfg`` times ``ours`` by how alike the guided
    leap and that of ``theirs`` are, each (B, C, h, w); a picture of a batch by itself."""
    leap = ours * cfg

    def roots(x: Tensor) -> Tensor:
        return x.abs().sqrt() * x.sign()

    alike = F.cosine_similarity(roots(theirs * cfg), roots((leap + guided) / 2), dim=1)
    weight = 2 * (alike.mean((1, 2), keepdim=True)[:, None] + 1)
    return (weight * guided + (4 - weight) * leap) / 4
