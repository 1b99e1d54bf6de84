"""What a run learns from: its items with everything encoded, and the order they come in.

``dataset`` reads the folders and ``cache`` keeps what the encoders make of them; here both are put
together, and some of the pictures are held out to validate with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..models.config import VAEConfig
from ..models.families import DEFAULT_FAMILY, family_of
from ..models.family import Family
from ..models.geometry import TokenGeometry
from ..offload import OffloadRunner
from ..sampling.latents import image_tokens, latent_size
from .buckets import BatchSampler
from .cache import EncodingCache, OnProgress, TensorStore
from .config import ConfigError, TrainConfig
from .dataset import DataProblems, Item, read_items, summarize
from .models import TrainingModels
from .seeds import VALIDATION_STREAM, combined_seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """Items to train on and to validate with, their encodings, and the order of batches.

    ``family`` is the transformer's: it knows channels and constants of the latents (``vae``), their
    tokens (``geometry``), and how noise levels are shifted.
    """

    items: list[Item]
    validation: list[Item]
    cache: EncodingCache
    sampler: BatchSampler
    family: Family = DEFAULT_FAMILY

    @property
    def vae(self) -> VAEConfig:
        return self.family.vae

    @property
    def geometry(self) -> TokenGeometry:
        return self.family.tokens

    @property
    def image_tokens(self) -> int:
        """Tokens of the largest picture."""
        sizes = (
            latent_size(item.size.height, item.size.width, self.vae) for item in self.all_items
        )
        return max(image_tokens(*size, geometry=self.geometry) for size in sizes)

    @property
    def all_items(self) -> tuple[Item, ...]:
        return (*self.items, *self.validation)

    @property
    def text_length(self) -> int:
        """Tokens of the longest text encoding."""
        captions = [""]  # as long as any, but where padding is masked
        if self.cache.masks_padding:
            captions += [item.caption for item in self.all_items]
        return max(self.cache.text(caption).context.shape[1] for caption in captions)


def read_all(config: TrainConfig) -> tuple[list[Item], list[Item], DataProblems]:
    """Items to train on, items to validate with, and what is wrong with others."""
    problems = DataProblems()
    items = read_items(config.data, problems)
    validation: list[Item] = []
    if config.validation.every and config.validation.folder:
        folder = replace(config.data[0], folder=config.validation.folder, metadata="", repeats=1)
        validation = read_items([folder], problems)
    elif config.validation.every:
        items, validation = split_validation(items, config.validation.share, config.seed)
    return items, validation, problems


def split_validation(items: list[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Items to train on and a share of the pictures to validate with, picked by the seed."""
    contents = sorted({item.content for item in items})
    count = min(len(contents) - 1, math.ceil(share * len(contents)))
    generator = torch.Generator().manual_seed(combined_seed(seed, VALIDATION_STREAM))
    chosen = {contents[i] for i in torch.randperm(len(contents), generator=generator)[:count]}
    rest = [item for item in items if item.content not in chosen]
    return rest, [item for item in items if item.content in chosen]


@torch.no_grad()
def prepare(
    config: TrainConfig,
    models: TrainingModels,
    runner: OffloadRunner,
    on_progress: OnProgress,
    *,
    workers: int = 1,
    first: bool = True,
    wait: Callable[[], None] = lambda: None,
) -> TrainingData:
    """Read the data and encode what the cache does not have.

    Args:
        workers: processes among which each batch is shared out.
        first: whether this process encodes; the others ``wait`` and find it done.

    Raises ``ConfigError`` for data that cannot be used.
    """
    items, validation, problems = read_all(config)
    folder = Path(config.cache) if config.cache else config.folder / "cache"
    store = TensorStore(None if config.cache == "none" else folder)
    encoders = models.encoders.for_family(family_of(models.transformer))
    cache = EncodingCache(store, models.vae, encoders)
    texts = [item.caption for item in (*items, *validation)] + ["", *config.samples.prompts]

    def fill(some: Sequence[Item]) -> list[Item]:
        on_fault = config.data[0].broken
        return cache.fill_latents(some, models.vae, runner, problems, on_fault, on_progress)

    def fill_all() -> tuple[list[Item], list[Item]]:
        cache.fill_texts(texts, encoders, runner, on_progress)
        return fill(items), fill(validation)

    if first:
        fill_all()
    wait()
    items, validation = fill_all()
    if not items:
        raise ConfigError(f"no picture is left to train on: {summarize(problems.skipped)}")
    for message in dict.fromkeys(problems.skipped):
        log.warning("left out: %s", message)
    sampler = BatchSampler(
        [item.size for item in items],
        [item.repeats for item in items],
        config.batch * workers,
        config.seed,
    )
    return TrainingData(items, validation, cache, sampler, family_of(models.transformer))
