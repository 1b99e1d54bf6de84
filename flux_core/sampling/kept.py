"""References that attend to themselves alone, over a run: where what blocks make of them is kept.

On the device while it has room; else on the host, from where it is copied with the blocks; else
nowhere, and each step computes it. The plan takes the fastest way that fits, and all give the same
bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ..models.side_tokens import Keep
from ..models.transformer import FluxTransformer
from ..offload import OffloadRunner, Work
from ..offload.blocks import modulation_width
from ..offload.kept import SLOTS, KeptOnHost
from ..offload.memory import host_bytes
from ..offload.plan import Plan

#: They may take one part in so many of the host's memory, where the weights may be too.
HOST_SHARE = 4


def keeping(runner: OffloadRunner, plan: Plan) -> Keep:
    """What a run by a plan keeps, and where."""
    if plan.kept_on_host:
        policy = runner.policy
        return partial(KeptOnHost, runner.device, policy.host_budget if policy.pin else 0)
    return not plan.recompute


def work_of_keeping(work: Work, model: FluxTransformer, counts: Sequence[int], batch: int) -> Work:
    """The work of a run whose prompts have so many such tokens each, from that of one that keeps
    nothing; with the other ways to do it."""
    if not counts:
        return work
    blocks = len(model.offload_blocks())
    modulations = 2 * model.dtype.itemsize * batch * modulation_width(model) * len(counts)
    # all that blocks make of them, but for the last block of the last prompt, which a step holds
    kept = model.kept_bytes(blocks * sum(counts) - max(counts), batch)
    slots = SLOTS * model.kept_bytes(sum(counts), batch)
    on_host = replace(
        work,
        activations=work.activations + slots + modulations,
        moved=model.kept_bytes(blocks * max(counts), batch),
    )
    return replace(
        work,
        activations=work.activations + kept + modulations,
        on_host=on_host if kept <= host_bytes() // HOST_SHARE else None,
        recompute=replace(
            work,
            activations=work.activations + modulations,
            image_tokens=work.image_tokens + max(counts),
        ),
    )
