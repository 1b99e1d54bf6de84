"""The order of copies and computing."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_core.offload.blocks import blocks_of
from flux_core.offload.host_weights import HostWeights
from flux_core.offload.ring import Ring
from flux_core.offload.schedule import COMPUTE, COPY, make_schedule, simulate, step_seconds
from tests import tiny_models


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
    blocks = blocks_of(tiny_models.flux_transformer())
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
