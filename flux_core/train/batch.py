"""One batch of a run: everything that its loss is computed of, and where that comes from.

    position in the data, seed -> items, captions, noise levels, noise -> Batch

What a batch is made of is decided in ``training_batch`` and ``validation_batches``; what it holds
is put together in ``build_batch`` alone. So more for the transformer to read, or to be learned
from, is one field of ``Batch``, filled in ``build_batch``.

Axis letters: B pictures, h and w latents, N text tokens, D and P widths of the text encodings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.text_encoding import TextEncoding, joined
from ..sampling.latents import host_noise, image_tokens, latent_size, standardise
from .buckets import Size
from .config import ObjectiveConfig, TrainConfig
from .data import TrainingData
from .dataset import Item
from .noise_levels import draw_times, loss_weights
from .seeds import TRAINING_STREAM, VALIDATION_STREAM, combined_seed
from .workers import Workers


@dataclass(frozen=True)
class Batch:
    """Pictures of one size, and what is done to them for this one prediction.

    Args:
        latents: (B, 16, h, w), standardised: the picture without noise.
        text: context (B, N, D) and pooled (B, P).
        noise: (B, 16, h, w), of deviation 1.
        times: (B,) noise levels in (0, 1).
        weights: (B,), how much the loss of each picture counts.
        mask: (B, 1, h, w) in [0, 1], how much each place counts, or None for all the same.
    """

    latents: Tensor
    text: TextEncoding
    noise: Tensor
    times: Tensor
    weights: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def noisy(self) -> Tensor:
        """What the transformer sees, (B, 16, h, w): (1 - t) x + t n."""
        level = self.times.view(-1, 1, 1, 1)
        return (1 - level) * self.latents + level * self.noise

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on a device."""
        return replace(
            self,
            latents=self.latents.to(device),
            text=self.text.to(device),
            noise=self.noise.to(device),
            times=self.times.to(device),
            weights=self.weights.to(device),
            mask=None if self.mask is None else self.mask.to(device),
        )


def build_batch(
    data: TrainingData,
    objective: ObjectiveConfig,
    items: Sequence[Item],
    captions: Sequence[str],
    times: Tensor,
    noise: Tensor,
) -> Batch:
    """Put a batch together on the CPU, from the cache.

    Args:
        items, captions: B of each; the items are of one size.
        times: (B,) noise levels.
        noise: (B, 16, h, w).

    Raises ``FileNotFoundError`` where the cache has lost one of them.
    """
    encoded = [data.cache.latents(item) for item in items]
    latents = standardise(torch.cat([latents for latents, _ in encoded]), data.vae)
    masks = [mask for _, mask in encoded]
    mask = None
    if any(m is not None for m in masks):
        everywhere = torch.ones(1, *latents.shape[-2:])
        mask = torch.stack([everywhere if m is None else m for m in masks])
        mask = mask.clamp_min(objective.mask_floor)
    text = joined([data.cache.text(caption) for caption in captions])
    return Batch(latents, text, noise, times, loss_weights(objective, times), mask)


def training_batch(
    data: TrainingData, config: TrainConfig, position: int, workers: Workers
) -> tuple[Batch | None, int]:
    """This process's share of the batch at a position of the data, and the whole batch's size.

    The share is None where there are more processes than pictures. Random numbers are drawn for the
    whole batch, so that a picture's are the same however it is shared out.
    """
    objective = config.objective
    numbers = data.sampler.at(position)
    count = len(numbers)
    generator = torch.Generator().manual_seed(combined_seed(config.seed, TRAINING_STREAM, position))
    shape = noise_shape(data, count, data.items[numbers[0]].size)
    tokens = image_tokens(*shape[-2:], geometry=data.geometry)
    times = draw_times(objective, count, tokens, generator, data.family)
    noise = torch.randn(shape, generator=generator)
    dropped = torch.rand(count, generator=generator) < objective.caption_dropout
    share = workers.share(count)
    if not len(share):
        return None, count
    items = [data.items[numbers[i]] for i in share]
    captions = ["" if dropped[i] else data.items[numbers[i]].caption for i in share]
    span = slice(share.start, share.stop)
    return build_batch(data, objective, items, captions, times[span], noise[span]), count


def validation_batches(data: TrainingData, config: TrainConfig) -> Iterator[Batch]:
    """Each picture held out at each of some noise levels, one a batch, at noise that never changes.

    There are ``len(data.validation) * config.validation.levels`` of them.
    """
    count = config.validation.levels
    times = (torch.arange(count) + 0.5) / count
    for number, item in enumerate(data.validation):
        for level in range(count):
            seed = combined_seed(config.seed, VALIDATION_STREAM, number, level)
            noise = host_noise(noise_shape(data, 1, item.size), seed)
            yield build_batch(
                data, config.objective, [item], [item.caption], times[level : level + 1], noise
            )


def noise_shape(data: TrainingData, count: int, size: Size) -> tuple[int, int, int, int]:
    """(B, 16, h, w) of so many pictures of a size in pixels."""
    return count, data.vae.latent_channels, *latent_size(size.height, size.width, data.vae)
