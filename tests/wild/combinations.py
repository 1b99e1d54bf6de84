"""Features in combination, drawn at random under every policy, and with a fault in between.

    python -m tests.wild.combinations --count 200

Each combination of a family, a precision, and what there is to say what to draw (``scenes``) is
drawn under every policy and has the same bits; memory, counted by tensors, stays within 5 % of what
was predicted; devices that draw together have the bits of one that is named alone; and after
something raised in the middle of a run the next one has the same bits again. Ends with 1 where it
is not so, saying which combination it was.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from flux_core import OffloadPolicy
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.blocks import blocks_of, has_attached
from flux_core.offload.placement import placement_of
from flux_core.quant import forget_matrices
from flux_core.sampling.run import DrawRequest, draw

from .scenes import REFUSED, Combination, set_up

CPU = torch.device("cpu")
POLICIES = {
    "component": OffloadPolicy("component", separate_memory=True),
    "stream": OffloadPolicy("stream", separate_memory=True),
    "three slots": OffloadPolicy("stream", slots=3, separate_memory=True),
    "auto": OffloadPolicy("auto", vram_budget=30_000_000, separate_memory=True),
}
#: One device that draws pictures one by one, and two that share them and both halves of guidance.
ALONE = OffloadPolicy("component", separate_memory=True, devices="cpu")
TOGETHER = OffloadPolicy("stream", separate_memory=True, devices="cpu,cpu:1")
#: By how much a prediction may be off.
OFF = 0.05


class InjectedError(Exception):
    """What goes wrong in the middle of a run."""


def drawn(request: DrawRequest, policy: OffloadPolicy) -> tuple[torch.Tensor, int, int]:
    """Latents (B, C, h, w), and bytes: predicted, and counted at most.

    The request is drawn as a new one, on a device where nothing is from runs before: its noise,
    which a card would copy for this one and here nobody would, and what int8 rotates by.
    """
    forget_matrices(CPU.type)
    runner = OffloadRunner(policy, CPU)
    with LiveBytes() as counted:
        (latents,) = draw(runner, [replace(request)])
    return latents, runner.report.parts["transformer"].predicted, counted.peak


def broken(request: DrawRequest, rng: random.Random) -> None:
    """Draw with a block that raises at one of its calls."""
    block = rng.choice(blocks_of(request.transformer))
    calls = rng.randint(1, 3)

    def count(*_: object) -> None:
        nonlocal calls
        calls -= 1
        if not calls:
            raise InjectedError

    handle = block.register_forward_pre_hook(count)
    try:
        draw(OffloadRunner(rng.choice(list(POLICIES.values())), CPU), [request])
    except InjectedError:
        pass
    finally:
        handle.remove()


def problem_of(combination: Combination, folder: Path) -> str:
    """What is wrong with a combination, empty where nothing is, or where it is refused in words."""
    try:
        return drawing_problem(combination, folder)
    except ValueError as error:
        if str(error).startswith(REFUSED):
            return ""
        raise


def drawing_problem(combination: Combination, folder: Path) -> str:
    """What is wrong with what a combination draws, empty where nothing is."""
    with set_up(combination, folder) as request:
        (expected,) = draw(OffloadRunner(OffloadPolicy("none"), CPU), [request])
        if not bool(expected.isfinite().all()):
            return "not a number"
        # a model that was drawn with before, without what is attached for a run
        draw(OffloadRunner(POLICIES["stream"], CPU), [replace(request, loras=(), adapters=())])
        evict(request.modules)
        for name, policy in POLICIES.items():
            latents, predicted, counted = drawn(request, policy)
            evict(request.modules)
            if not torch.equal(latents, expected):
                return f"other bits under {name}: {float((latents - expected).abs().max()):.1e} off"
            if abs(counted - predicted) > OFF * counted:
                return f"{predicted} bytes predicted under {name}, {counted} counted"
        if problem := problem_together(request, expected):
            return problem
        broken(request, random.Random(combination.number))
        if any(has_attached(module) for module in request.modules):
            return "something stayed at the model after a fault"
        if not torch.equal(drawn(request, POLICIES["stream"])[0], expected):
            return "other bits after a fault"
        evict(request.modules)
    return ""


def problem_together(request: DrawRequest, expected: torch.Tensor) -> str:
    """What is wrong with what devices draw together, empty where nothing is; ``expected`` are
    latents (B, C, h, w) drawn at once."""
    alone, predicted, counted = drawn(request, ALONE)
    if len(alone) == 1 and not torch.equal(alone, expected):
        return "other bits where a device is named"
    if abs(counted - predicted) > OFF * counted:
        return f"{predicted} bytes predicted for a device that is named, {counted} counted"
    evict(request.modules)
    (together,) = draw(OffloadRunner(TOGETHER, CPU), [replace(request)])
    evict(request.modules)
    if not torch.equal(together, alone):
        return f"other bits on two devices: {float((together - alone).abs().max()):.1e} off"
    return ""


def evict(modules: list[nn.Module]) -> None:
    for module in modules:
        placement_of(module, CPU, separate=True).evict()


def main() -> int:
    parser = argparse.ArgumentParser(description="Features in combination, drawn at random.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.first, args.first + args.count):
            combination = Combination.of(number)
            try:
                problem = problem_of(combination, Path(folder))
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            wrong += bool(problem)
            if problem:
                print(f"{combination}: {problem}", flush=True)
    print(f"{args.count} combinations: {wrong} with something wrong")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
