"""What a card will do with FLUX.1-dev."""

from __future__ import annotations

from itertools import pairwise

import pytest

from flux_core.offload.machine import Machine
from flux_core.offload.plan import cost_of
from flux_core.quant.apply import module_bytes
from flux_core.sampling.estimate import flux1_dev, models_like, plan_picture, published_models


def dev(**more):
    return flux1_dev(more.get("precision", "fp8_scaled")).transformer


def plan(vram, link, tflops, precision="fp8_scaled", **more):
    machine = Machine(link * 1e9, tflops * 1e12)
    return plan_picture(machine, vram=vram * 1e9, precision=precision, **more)


def test_sizes_are_those_of_flux1_dev():
    cost = cost_of(dev())
    assert cost.blocks[0] == pytest.approx(226e6, rel=0.01)
    assert cost.blocks[-1] == pytest.approx(113e6, rel=0.01)
    assert sum(cost.blocks) == pytest.approx(8.61e9, rel=0.01)
    assert cost.modulations == pytest.approx(3.23e9, rel=0.01)
    bf16 = cost_of(dev(precision="bf16"))
    assert bf16.all_blocks + bf16.modulations == pytest.approx(23.8e9, rel=0.01)


@pytest.mark.parametrize(("link", "tflops"), [(12.5, 100), (25, 200), (55, 440)])
def test_streaming_is_free_where_arithmetic_says_so(link, tflops):
    planned_picture = plan(6, link, tflops)
    assert planned_picture.fits and planned_picture.drawing.modules[0].streamed
    assert planned_picture.drawing.slowdown <= 0.05


def test_an_h100_at_float8_speed_loses_at_most_a_tenth_within_6_gb():
    planned_picture = plan(6, 55, 1200)
    assert (
        planned_picture.fits
        and planned_picture.drawing.slowdown <= 0.1
        and planned_picture.peak <= 6e9
    )


def test_more_memory_is_never_slower_and_never_overrun():
    sizes = (1.34, 3, 4, 6, 8, 10, 12, 24)
    plans = [plan(vram, 12.5, 300) for vram in sizes]
    seconds = [p.step for p in plans]
    assert all(b <= a * 1.001 for a, b in pairwise(seconds))
    assert all(p.peak <= vram * 1e9 for p, vram in zip(plans, sizes, strict=True))
    assert plans[-1].drawing.modules[0].modulations and plans[-1].drawing.slowdown == 0
    assert plans[0].vae.tile is not None and plans[1].vae.tile is None


def test_too_little_memory_is_said_with_what_is_needed():
    planned_picture = plan(0.5, 12.5, 100)
    assert not planned_picture.fits
    assert str(planned_picture).startswith("does not fit: it needs 1.")


def test_too_little_host_memory_is_read_from_disk():
    assert plan(4, 25, 70, ram=64e9).from_disk == 0
    planned_picture = plan(4, 25, 70, ram=1e9)
    assert planned_picture.from_disk > 4e9 and planned_picture.step > 1.3
    assert "from disk a step" in str(planned_picture)


class TestModelsByName:
    @pytest.mark.parametrize(
        ("name", "billions"),
        [
            ("FLUX.2-dev", (32.2, 17.3)),
            ("FLUX.2-klein-4B", (3.9, 3.1)),
            ("FLUX.2-klein-9B", (9.1, 5.8)),
        ],
    )
    def test_flux_2_is_planned_at_its_public_sizes(self, name, billions):
        models = published_models(name, "bf16")
        sizes = [module_bytes(m) / 2e9 for m in (models.transformer, models.t5)]
        assert sizes == pytest.approx(billions, abs=0.06)
        assert models.clip_l is None and models_like(models.transformer, "bf16") is models
        machine = Machine(25e9, 70e12)
        small = plan_picture(machine, vram=8e9, models=models)
        large = plan_picture(machine, vram=80e9, models=models)
        assert small.fits and small.drawing.streamed > 0 == large.drawing.streamed
        assert small.peak <= 8e9 and small.step > 0.99 * large.step
        assert "tiles of" not in str(large) or large.pixels == 16

    def test_an_unknown_name_lists_the_known_ones(self):
        with pytest.raises(ValueError, match=r"'FLUX.3', expected one of FLUX\.1-dev, FLUX\.1-sch"):
            published_models("FLUX.3", "bf16")
