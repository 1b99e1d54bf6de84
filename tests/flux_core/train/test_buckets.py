"""Sizes of pictures, and batches of one size."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from flux_core.train.buckets import BatchSampler, Size, bucket_for, buckets


@given(
    st.sampled_from([256, 512, 768, 1024]),
    st.sampled_from([16, 32, 64]),
    st.floats(1, 4),
    st.integers(1, 4000),
    st.integers(1, 4000),
)
def test_sizes_keep_their_promises(side, step, aspect, width, height):
    sizes = buckets(side, step, aspect)
    assert Size(side, side) in sizes
    for size in sizes:
        assert size.width % step == size.height % step == 0
        assert size.width * size.height <= side * side
        assert max(size) <= aspect * min(size)
    chosen = bucket_for(width, height, sizes)
    off = abs(math.log(chosen.width / chosen.height * height / width))
    assert all(off <= abs(math.log(s.width / s.height * height / width)) + 1e-9 for s in sizes)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=20),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_an_epoch_has_every_picture_as_often_as_asked(items, batch, seed):
    kinds, repeats = [kind for kind, _ in items], [count for _, count in items]
    sampler = BatchSampler(kinds, repeats, batch, seed)
    for epoch in (0, 3):
        batches = sampler.epoch(epoch)
        assert len(batches) == sampler.count
        for numbers in batches:
            assert len({kinds[i] for i in numbers}) == 1 and len(numbers) <= batch
        flat = [i for numbers in batches for i in numbers]
        assert sorted(flat) == sorted(i for i, n in enumerate(repeats) for _ in range(n))
    again = BatchSampler(kinds, repeats, batch, seed)
    assert [again.at(i) for i in (sampler.count, 0)] == [sampler.epoch(1)[0], sampler.epoch(0)[0]]


def test_epochs_and_seeds_differ():
    sampler = BatchSampler([0] * 50, [1] * 50, 1, 0)
    assert sampler.epoch(0) != sampler.epoch(1) != BatchSampler([0] * 50, [1] * 50, 1, 1).epoch(1)
