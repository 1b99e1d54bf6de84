"""What a run learns from: its items with everything encoded, those held out, and the batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..checkpoint.load import load_text_encoders, load_transformer, load_vae
from ..models.text_encoders import TextEncoders
from ..models.transformer import FluxTransformer
from ..models.vae import AutoEncoder
from ..offload import OffloadRunner
from ..pocket import pocket_file
from ..quant import full_dtype
from .buckets import Batches, mixed
from .cache import Cache, Store, Told
from .config import ConfigError, ModelConfig, TrainConfig
from .dataset import Faults, Item, listed, read_items

log = logging.getLogger(__name__)

#: Random streams of a run, told apart by these.
STEP, VALIDATION = 1, 2


@dataclass(frozen=True)
class TrainingModels:
    """The models that a run needs; the transformer is left as it was."""

    transformer: FluxTransformer
    encoders: TextEncoders
    vae: AutoEncoder

    @classmethod
    def open(cls, config: ModelConfig, ram_budget: int | None = None) -> TrainingModels:
        """The models of some files, or the pocket model where none are named."""
        if not config.transformer:
            files = {
                "transformer": pocket_file("diffusion_models"),
                "clip_l": pocket_file("text_encoders", "_clip_l"),
                "t5": pocket_file("text_encoders", "_t5"),
                "vae": pocket_file("vae", "_vae"),
            }
            config = replace(config, **{name: str(path) for name, path in files.items()})
        return cls(
            load_transformer(
                config.transformer, precision=config.precision, ram_budget=ram_budget
            ),
            load_text_encoders(
                config.clip_l, config.t5, precision=config.text_precision,
                tokenizers=config.tokenizers or None,
            ),
            load_vae(config.vae, dtype=full_dtype(config.text_precision)),
        )  # fmt: skip


@dataclass(frozen=True)
class Data:
    """Items to train on and, ``checked``, to validate with."""

    items: list[Item]
    checked: list[Item]
    cache: Cache
    batches: Batches

    @property
    def pixels(self) -> int:
        """Of the largest picture."""
        return max(item.size.width * item.size.height for item in (*self.items, *self.checked))

    @property
    def text_length(self) -> int:
        return self.cache.text("").context.shape[1]


def read_all(config: TrainConfig) -> tuple[list[Item], list[Item], Faults]:
    """Items to train on, items to validate with, and what is wrong with others."""
    faults = Faults()
    items = read_items(config.data, faults)
    checked: list[Item] = []
    if config.validation.every and config.validation.folder:
        place = replace(config.data[0], folder=config.validation.folder, metadata="", repeats=1)
        checked = read_items([place], faults)
    elif config.validation.every:
        items, checked = held_out(items, config.validation.share, config.seed)
    return items, checked, faults


def held_out(items: list[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Items to train on and a share of the pictures to validate with, picked by the seed."""
    contents = sorted({item.content for item in items})
    count = min(len(contents) - 1, math.ceil(share * len(contents)))
    generator = torch.Generator().manual_seed(mixed(seed, VALIDATION))
    chosen = {contents[i] for i in torch.randperm(len(contents), generator=generator)[:count]}
    rest = [item for item in items if item.content not in chosen]
    return rest, [item for item in items if item.content in chosen]


@torch.no_grad()
def prepare(
    config: TrainConfig,
    parts: TrainingModels,
    runner: OffloadRunner,
    told: Told,
    *,
    workers: int = 1,
    first: bool = True,
    wait: Callable[[], None] = lambda: None,
) -> Data:
    """Read the data and encode what the cache does not have.

    Args:
        workers: processes among which each batch is shared out.
        first: whether this process encodes; the others ``wait`` and find it done.

    Raises ``ConfigError`` for data that cannot be used.
    """
    items, checked, faults = read_all(config)
    folder = Path(config.cache) if config.cache else config.folder / "cache"
    cache = Cache(Store(None if config.cache == "none" else folder), parts.vae, parts.encoders)
    texts = [item.caption for item in (*items, *checked)] + ["", *config.samples.prompts]

    def fill(some: list[Item]) -> list[Item]:
        way = config.data[0].broken
        return cache.fill_latents(some, parts.vae, runner, faults, way, told)

    def fill_all() -> tuple[list[Item], list[Item]]:
        cache.fill_texts(texts, parts.encoders, runner, told)
        return fill(items), fill(checked)

    if first:
        fill_all()
    wait()
    items, checked = fill_all()
    if not items:
        raise ConfigError(f"no picture is left to train on: {listed(faults.found)}")
    for said in dict.fromkeys(faults.found):
        log.warning("left out: %s", said)
    batches = Batches(
        [item.size for item in items], [item.repeats for item in items], config.batch * workers,
        config.seed,
    )  # fmt: skip
    return Data(items, checked, cache, batches)
