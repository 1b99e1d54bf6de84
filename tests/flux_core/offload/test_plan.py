"""Schedules against a clock, and plans against what the hardware allows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_core import FluxTransformer, OffloadPolicy
from flux_core.offload.blocks import blocks_of
from flux_core.offload.host_weights import HostWeights
from flux_core.offload.machine import Machine
from flux_core.offload.plan import Cost, choose_resident, cost_of, make_plan
from flux_core.offload.policy import MODES
from flux_core.offload.ring import Ring
from flux_core.offload.schedule import COMPUTE, COPY, make_schedule, simulate, step_seconds
from flux_core.sampling.estimate import flux1_dev, plan_picture
from tests import tiny_models as tiny


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_no_slot_is_read_before_its_copy_or_overwritten_in_use(data):
    count = data.draw(st.integers(1, 12))
    streamed = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    slots, steps = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 4))
    times = st.lists(st.floats(0.0, 9.0), min_size=count, max_size=count)
    copying, computing = data.draw(times), data.draw(times)
    spans = simulate(make_schedule(count, streamed, slots, steps), copying, computing)
    order = [(s.entry.step, s.entry.block) for s in spans if s.entry.lane == COMPUTE]
    assert order == [(step, block) for step in range(steps) for block in range(count)]
    holds: dict[int, tuple[int, float]] = {}
    busy: dict[int, float] = {}
    for span in spans:
        slot = span.entry.slot
        if span.entry.lane == COPY:
            assert slot is not None and span.start >= busy.get(slot, 0.0)
            holds[slot] = (span.entry.block, span.end)
        elif slot is not None:
            block, ready = holds.pop(slot)
            assert block == span.entry.block and span.start >= ready
            busy[slot] = span.end
    for lane in (COPY, COMPUTE):
        mine = [s for s in spans if s.entry.lane == lane]
        assert all(a.end <= b.start for a, b in pairwise(mine))
    least = max(sum(computing), sum(copying[b] for b in streamed))
    if steps > 2 and len(streamed) > slots:
        whole = max(s.end for s in spans if s.entry.lane == COMPUTE)
        assert whole >= least  # no step is faster than its lanes


def test_the_ring_does_what_the_schedule_says():
    blocks = blocks_of(tiny.randomise(FluxTransformer(tiny.DEV)))
    events = []

    class RecordingRing(Ring):
        def fetch(self, slot):
            events.append((COPY, self.next, self.slots.index(slot)))
            super().fetch(slot)

    ring = RecordingRing([HostWeights(block, set()) for block in blocks], torch.device("cpu"), 3)
    steps = 3
    for _ in range(steps):
        for number in range(len(blocks)):
            slot, _ = ring.enter(number)
            events.append((COMPUTE, number, ring.slots.index(slot)))
            ring.leave(slot)
    expected = make_schedule(len(blocks), range(len(blocks)), 3, steps)
    wanted = [(entry.lane, entry.block, entry.slot) for entry in expected]
    copies = [entry for entry in events if entry[0] == COPY]
    for entry in copies[steps * len(blocks) :]:  # for a step that a schedule of three has not
        events.reverse()
        events.remove(entry)
        events.reverse()
    assert events == wanted


def test_copies_hide_behind_computing_where_they_can():
    entries = make_schedule(10, range(10), 2, 3)
    assert step_seconds(simulate(entries, [1.0] * 10, [1.5] * 10)) == pytest.approx(15.0)
    assert step_seconds(simulate(entries, [2.0] * 10, [1.5] * 10)) == pytest.approx(20.0)


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


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_plans_keep_to_their_budget_or_say_so(data):
    costs, modes = [], []
    for _ in range(data.draw(st.integers(1, 3))):
        count = data.draw(st.integers(0, 12))
        blocks = tuple(data.draw(st.integers(1, 50)) for _ in range(count))
        costs.append(Cost(data.draw(st.integers(0, 30)), blocks, 20, (1.0,) * count))
        modes.append(data.draw(st.sampled_from(MODES)))
    budget = data.draw(st.one_of(st.none(), st.integers(0, 1500)))
    activations = data.draw(st.integers(0, 50))
    planned_picture = make_plan(
        costs,
        modes,
        OffloadPolicy(slots=data.draw(st.integers(2, 4))),
        budget=budget,
        activations=activations,
        machine=data.draw(st.sampled_from([None, Machine(10.0, 1.0)])),
    )
    for cost, mode, m in zip(costs, modes, planned_picture.modules, strict=True):
        held = cost.rest + sum(cost.blocks[n] for n in m.resident) + 20 * m.modulations
        assert m.held == held
        assert m.streamed == sum(b for n, b in enumerate(cost.blocks) if n not in m.resident)
        if mode in ("none", "component"):
            assert not m.streamed
    assert planned_picture.peak == planned_picture.weights + activations
    if budget is not None and planned_picture.fits:
        assert planned_picture.peak <= budget
    if not planned_picture.fits and set(modes) <= {"auto", "stream"}:
        assert budget < planned_picture.least


def test_blocks_that_stay_are_spread_where_the_link_is_short():
    sizes, times = [2.0] * 4 + [1.0] * 8, [1.0] * 12
    spread = choose_resident(sizes, times, 8)
    assert sum(sizes[n] for n in spread) == 8
    assert len(spread & {0, 1, 2, 3}) > 0 and len(spread & set(range(4, 12))) > 0
    assert choose_resident(sizes, times, 8, spread=False) == {0, 1, 2, 3}
    assert choose_resident(sizes, times, 16) == set(range(12))
    assert not choose_resident(sizes, times, 0)
