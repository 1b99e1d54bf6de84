"""What a batch holds, and that it depends on seed and position alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from flux_core.offload import OffloadRunner
from flux_core.train.batch import Batch, training_batch, validation_batches
from flux_core.train.config import ObjectiveConfig, TrainConfig, ValidationConfig
from flux_core.train.data import TrainingData, prepare
from flux_core.train.objective import batch_loss
from flux_core.train.workers import Workers
from tests.training_runs import pocket_models, train_config


def prepared(config: TrainConfig) -> TrainingData:
    runner = OffloadRunner(None, "cpu")
    return prepare(config, pocket_models(), runner, lambda *_: None)


def batch_at(data: TrainingData, config: TrainConfig, position: int) -> Batch:
    batch, count = training_batch(data, config, position, Workers("cpu"))
    assert batch is not None and len(batch) == count
    return batch


def tensors(batch: Batch) -> list[torch.Tensor]:
    text = batch.text
    return [batch.latents, text.context, text.pooled, batch.noise, batch.times, batch.weights]


def mask_out(config: TrainConfig) -> None:
    """A mask beside the first picture: its left half is not learned."""
    half = np.zeros((64, 64), np.uint8)
    half[:, 32:] = 255
    Image.fromarray(half).save(Path(config.data[0].folder) / "0.mask.png")


def test_shapes_and_what_the_model_sees(tmp_path):
    config = train_config(tmp_path, batch=5, objective=ObjectiveConfig(weighting="sigma_sqrt"))
    batch = batch_at(prepared(config), config, 0)
    assert batch.latents.shape == batch.noise.shape == (5, 16, 8, 8) and batch.mask is None
    assert batch.text.context.shape[0] == batch.text.pooled.shape[0] == len(batch.times) == 5
    assert torch.allclose(batch.weights, batch.times.clamp_min(1e-2) ** -2)
    t = float(batch.times[1])
    expected = (1 - t) * batch.latents[1] + t * batch.noise[1]
    assert torch.allclose(batch.noisy[1], expected, atol=1e-6)
    moved = batch.to(torch.device("cpu"))
    assert all(map(torch.equal, tensors(moved), tensors(batch)))


def test_a_batch_is_its_seed_and_position(tmp_path):
    config = train_config(tmp_path, batch=5)
    data = prepared(config)
    first, second = batch_at(data, config, 0), batch_at(data, config, 1)
    assert all(map(torch.equal, tensors(batch_at(data, config, 0)), tensors(first)))
    assert not torch.equal(first.noise[0], second.noise[0])
    other = batch_at(data, replace(config, seed=1), 0)
    assert not torch.equal(first.noise[0], other.noise[0])


@pytest.mark.parametrize("count", [2, 3])
def test_shares_of_a_batch_are_the_whole_one(tmp_path, count):
    config = train_config(tmp_path, batch=5)
    data = prepared(config)
    whole = batch_at(data, config, 0)
    shares = []
    for rank in range(count):
        worker = SimpleNamespace(
            share=lambda n, rank=rank: range(n * rank // count, n * (rank + 1) // count)
        )
        share, size = training_batch(data, config, 0, worker)  # type: ignore[arg-type]
        assert share is not None and size == 5
        shares.append(share)
    joined = [torch.cat(parts) for parts in zip(*map(tensors, shares), strict=True)]
    assert all(map(torch.equal, joined, tensors(whole)))
    none = SimpleNamespace(share=lambda n: range(0))
    assert training_batch(data, config, 0, none) == (None, 5)  # type: ignore[arg-type]


def test_captions_are_dropped_as_often_as_asked(tmp_path):
    config = train_config(tmp_path, batch=5, objective=ObjectiveConfig(caption_dropout=1.0))
    data = prepared(config)
    empty = data.cache.text("")
    assert torch.equal(batch_at(data, config, 0).text.pooled, empty.pooled.expand(5, -1))
    kept = replace(config, objective=ObjectiveConfig())
    assert not torch.equal(batch_at(data, kept, 0).text.pooled, empty.pooled.expand(5, -1))


def test_a_mask_of_one_picture_is_one_for_all(tmp_path):
    config = train_config(tmp_path, batch=5, objective=ObjectiveConfig(mask_floor=0.25))
    mask_out(config)
    data = prepared(config)
    batch = batch_at(data, config, 0)
    assert batch.mask is not None and batch.mask.shape == (5, 1, 8, 8)
    masked = [data.items[i].mask is not None for i in data.sampler.at(0)]
    assert sum(masked) == 1
    for mask, has_one in zip(batch.mask, masked, strict=True):
        assert mask.unique().tolist() == ([0.25, 1.0] if has_one else [1.0])


def test_validation_sees_the_same_noise_every_time(tmp_path):
    config = train_config(tmp_path, validation=ValidationConfig(every=1, share=0.4, levels=3))
    data = prepared(config)
    batches = list(validation_batches(data, config))
    assert len(batches) == 3 * len(data.validation) == 6
    assert torch.allclose(torch.cat([b.times for b in batches[:3]]), torch.tensor([1, 3, 5]) / 6)
    again = list(validation_batches(data, replace(config, batch=1)))
    for a, b in zip(batches, again, strict=True):
        assert all(map(torch.equal, tensors(a), tensors(b)))
    assert not torch.equal(batches[0].noise, batches[1].noise)


def test_the_loss_is_a_function_of_the_batch(tmp_path):
    config = train_config(tmp_path, batch=5)
    batch = batch_at(prepared(config), config, 0)
    transformer = pocket_models("fp32").transformer
    with torch.no_grad():
        losses = batch_loss(transformer, batch, config.objective)
        doubled = batch_loss(
            transformer, replace(batch, weights=2 * batch.weights), config.objective
        )
    assert losses.shape == (5,) and torch.allclose(doubled, 2 * losses)
