"""Train a LoRA."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from .outcome import Outcome, memory_data

HELP = "train a LoRA"

#: What DiffSynth-Studio's trainer calls them.
DIFFSYNTH_PRECISIONS = {"float8_e4m3fn": "fp8_e4m3fn", "float8_e5m2": "fp8_e5m2"}


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits until what is yielded is called, which then raises; a second one raises at
    once."""
    asked = False

    def handle(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        print("\nstopping after this step; once more stops at once", file=sys.stderr)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, help="a .toml, .yaml or .json file")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--quantize",
        metavar="PRECISION",
        help="of the base: one of ours, float8_e4m3fn or float8_e5m2",
    )


def run(args: argparse.Namespace) -> Outcome:
    from flux_core.models.families import family_of
    from flux_core.report.pictures import write_picture
    from flux_core.sampling.latents import image_tokens, latent_size
    from flux_core.train import Trainer, TrainingEvent, TrainingModels, read_config
    from flux_core.train.plots import times_histogram

    from ..nodes import host

    config = read_config(args.config)
    if args.quantize:
        precision = DIFFSYNTH_PRECISIONS.get(args.quantize, args.quantize)
        config = replace(config, model=replace(config.model, precision=precision))
    models = TrainingModels.open(config.model, config.offload.policy.ram_budget)
    with host.stages() as show, deferred_interrupt() as check:

        def on_event(event: TrainingEvent) -> None:
            if trainer.workers.main:
                show(str(event), event.done, event.all)
            check()

        trainer = Trainer(config, models, host.device(), on_event=on_event)
        trained = trainer.run(args.resume)
    if not trained.files:  # another process writes them
        return Outcome("", {"files": []})
    side, family = max(config.data[0].resolutions), family_of(models.transformer)
    tokens = image_tokens(*latent_size(side, side, family.vae), geometry=family.tokens)
    picture = times_histogram(config.objective, tokens, family)
    write_picture(picture, config.folder / "timesteps.png")
    lines = [str(trained.report), *(f"LoRA: {path}" for path in trained.files)]
    data = {"files": list(trained.files), **memory_data(trained.report)}
    return Outcome("\n".join(lines), data)
