"""Two of everything: threads on one pipeline, trainers in one folder, savers of one name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fluxfit.nodes.headless.stock_nodes import save_png

from flux_core import FluxPipeline, OffloadPolicy, load_lora
from flux_core.offload.turns import turn_of
from flux_core.receipts import saved_pixels
from tests.wild.faults import small_lora

POLICIES = (
    OffloadPolicy("none"),
    OffloadPolicy("component", separate_memory=True),
    OffloadPolicy("stream", separate_memory=True),
)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: p.mode)
def test_threads_on_one_pipeline_each_draw_their_own_picture(policy, tmp_path):
    pipeline = FluxPipeline.from_pocket(precision="int8", policy=policy)
    lora = load_lora(small_lora(tmp_path / "lora.safetensors", pipeline))

    def draw(number: int) -> torch.Tensor:
        return pipeline(
            f"a circle, number {number}",
            width=32 + 16 * (number % 2),
            height=32,
            steps=2,
            seed=number,
            loras=[(lora, 0.2 * number)],
        ).images

    expected = [draw(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(draw, [0, 1, 2, 3, 3, 2, 1, 0]))
    for number, picture in zip([0, 1, 2, 3, 3, 2, 1, 0], drawn, strict=True):
        assert torch.equal(picture, expected[number]), number


def test_turns_in_any_order_do_not_wait_for_each_other():
    a, b, c = (torch.nn.Linear(1, 1) for _ in range(3))
    done = []

    def use(*modules: torch.nn.Module) -> None:
        for _ in range(200):
            with turn_of(*modules), turn_of(modules[0]):
                done.append(1)

    orders: list[Callable[[], None]] = [
        lambda: use(a, b, c),
        lambda: use(c, b, a),
        lambda: use(b, a),
        lambda: use(c, a),
    ]
    threads = [threading.Thread(target=order, daemon=True) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(done) == 800


@pytest.mark.parametrize("prefix", ["a", "a[1]", "**", "a b", "ä"])
def test_savers_of_one_name_get_names_of_their_own(prefix, tmp_path):
    pictures = [torch.full((4, 4, 3), i / 20) for i in range(20)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(
            pool.map(lambda picture: save_png(saved_pixels(picture), tmp_path / prefix), pictures)
        )
    assert len(set(paths)) == 20
    names = [f"{prefix}_{number:05}.png" for number in range(1, 21)]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
