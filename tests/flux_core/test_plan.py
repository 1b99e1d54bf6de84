"""Schedules against a clock, and plans against what the hardware allows."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_core import FluxTransformer, quantize
from flux_core.config import TransformerConfig
from flux_core.offload.pack import PackedBlock
from flux_core.offload.plan import Machine, block_bytes, make_plan
from flux_core.offload.ring import Ring
from flux_core.offload.schedule import COMPUTE, COPY, make_schedule, simulate, step_seconds
from flux_core.offload.streaming import blocks_of
from tests import tiny


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
    said = []

    class Told(Ring):
        def fetch(self, slot):
            said.append((COPY, self.next, self.slots.index(slot)))
            super().fetch(slot)

    ring = Told([PackedBlock(block, set(), False) for block in blocks], torch.device("cpu"), 3)
    steps = 3
    for _ in range(steps):
        for number in range(len(blocks)):
            slot, _ = ring.enter(number)
            said.append((COMPUTE, number, ring.slots.index(slot)))
            ring.leave(slot)
    expected = make_schedule(len(blocks), range(len(blocks)), 3, steps)
    wanted = [(entry.lane, entry.block, entry.slot) for entry in expected]
    copies = [entry for entry in said if entry[0] == COPY]
    for entry in copies[steps * len(blocks) :]:  # for a step that a schedule of three has not
        said.reverse()
        said.remove(entry)
        said.reverse()
    assert said == wanted


def test_copies_hide_behind_computing_where_they_can():
    entries = make_schedule(10, range(10), 2, 3)
    assert step_seconds(simulate(entries, [1.0] * 10, [1.5] * 10)) == pytest.approx(15.0)
    assert step_seconds(simulate(entries, [2.0] * 10, [1.5] * 10)) == pytest.approx(20.0)


def flux1_dev(precision: str) -> FluxTransformer:
    with torch.device("meta"):
        return quantize(FluxTransformer(TransformerConfig()), precision)  # type: ignore


@pytest.fixture(scope="module")
def model():
    return flux1_dev("fp8_scaled")


def plan(model, vram, link, tflops, **more):
    machine = Machine(vram * 1e9, link * 1e9, tflops * 1e12)
    return make_plan(model, machine, image=4096, **more)


def test_sizes_are_those_of_flux1_dev(model):
    sizes = [block_bytes(block) for block in blocks_of(model)]
    assert sizes[0] == pytest.approx(226e6, rel=0.01)
    assert sizes[-1] == pytest.approx(113e6, rel=0.01)
    assert sum(sizes) == pytest.approx(8.61e9, rel=0.01)


@pytest.mark.parametrize(("link", "tflops"), [(12.5, 100), (25, 200), (55, 440)])
def test_streaming_is_free_where_arithmetic_says_so(model, link, tflops):
    found = plan(model, 6, link, tflops)
    assert found.fits and found.resident < found.blocks
    assert found.loss <= 0.05


def test_more_memory_is_never_slower_and_never_overrun(model):
    plans = [plan(model, vram, 12.5, 300) for vram in (3, 4, 6, 8, 10, 12, 24)]
    seconds = [p.seconds for p in plans]
    assert all(b <= a + 1e-9 for a, b in pairwise(seconds))
    for p, vram in zip(plans, (3, 4, 6, 8, 10, 12, 24), strict=True):
        assert p.peak <= vram * 1e9
    assert plans[-1].resident == plans[-1].blocks and plans[-1].loss == 0


def test_too_little_memory_is_said_with_what_is_needed(model):
    found = plan(model, 0.5, 12.5, 100)
    assert not found.fits
    assert "does not fit: the transformer needs 1." in str(found)


def test_a_plan_is_told_in_a_line(model):
    said = str(plan(model, 8, 25, 70))
    assert "blocks resident" in said and "GB streamed a step" in said and "s a step" in said
