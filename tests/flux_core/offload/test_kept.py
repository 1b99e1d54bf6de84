"""Keys and values that wait on the host: whose turn it is, and what a card makes of it."""

from __future__ import annotations

import pytest
import torch

from flux_core.offload.kept import KeptOnHost

CPU = torch.device("cpu")


def test_blocks_out_of_turn_read_their_own():
    store, g = KeptOnHost(CPU, 0), torch.Generator().manual_seed(0)
    known = [tuple(torch.randn(1, 3, 2, 4, generator=g) for _ in range(2)) for _ in range(4)]
    for block, pair in enumerate(known):
        store.put(100 + block, tuple(pair))
    for block in (0, 1, 3, 3, 2, 0, 1, 2, 3, 0):
        pair = store.get(100 + block)
        assert all(torch.equal(a, b) for a, b in zip(pair, known[block], strict=True))
    store.clear()
    store.put(7, (torch.ones(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)))
    for _ in range(3):
        assert store.get(7)[0].sum() == 6, "one block alone"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_a_card_reads_what_it_wrote(budget):
    """Pinned or not, over several passes, while each block is busy with what it reads."""
    device, g = torch.device("cuda"), torch.Generator("cuda").manual_seed(0)
    store = KeptOnHost(device, budget)
    shape = (1, 2048, 8, 64)
    known = [
        tuple(torch.randn(shape, device=device, generator=g) for _ in range(2)) for _ in range(5)
    ]
    for block, pair in enumerate(known):
        store.put(block, pair)
    sums = []
    for _ in range(3):
        for block in range(5):
            pair = store.get(block)
            square = pair[0][0, :, 0] @ pair[0][0, :, 0].T
            for _ in range(20):  # so that a slot that is overwritten too early shows
                square = square @ square.div(square.norm())
            sums.append((block, pair[0].clone(), pair[1].clone()))
    for block, keys, values in sums:
        assert torch.equal(keys, known[block][0]) and torch.equal(values, known[block][1])
    store.clear()
    assert not len(store) and not store.size
