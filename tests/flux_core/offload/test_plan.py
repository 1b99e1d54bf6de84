"""Plans: which blocks stay within a budget."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flux_core import OffloadPolicy
from flux_core.offload.machine import Machine
from flux_core.offload.plan import Cost, choose_resident, make_plan
from flux_core.offload.policy import MODES


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
    plan = make_plan(
        costs,
        modes,
        OffloadPolicy(slots=data.draw(st.integers(2, 4))),
        budget=budget,
        activations=activations,
        machine=data.draw(st.sampled_from([None, Machine(10.0, 1.0)])),
    )
    for cost, mode, m in zip(costs, modes, plan.modules, strict=True):
        held = cost.rest + sum(cost.blocks[n] for n in m.resident) + 20 * m.modulations
        assert m.held == held
        assert m.streamed == sum(b for n, b in enumerate(cost.blocks) if n not in m.resident)
        if mode in ("none", "component"):
            assert not m.streamed
    assert plan.peak == plan.weights + activations
    if budget is not None and plan.fits:
        assert plan.peak <= budget
    if not plan.fits and set(modes) <= {"auto", "stream"}:
        assert budget < plan.least


def test_blocks_that_stay_are_spread_where_the_link_is_short():
    sizes, times = [2.0] * 4 + [1.0] * 8, [1.0] * 12
    spread = choose_resident(sizes, times, 8)
    assert sum(sizes[n] for n in spread) == 8
    assert len(spread & {0, 1, 2, 3}) > 0 and len(spread & set(range(4, 12))) > 0
    assert choose_resident(sizes, times, 8, spread=False) == {0, 1, 2, 3}
    assert choose_resident(sizes, times, 16) == set(range(12))
    assert not choose_resident(sizes, times, 0)


@pytest.mark.parametrize("blocks", [(1, 1, 2, 1), (9, 1, 1), (4, 4), (5,)])
@pytest.mark.parametrize("mode", ["stream", "auto"])
def test_blocks_that_take_no_more_than_their_slots_stay(blocks, mode):
    """Slots are as large as the largest block, so that a few of them can take more than all."""
    cost = Cost(1, blocks, 0, (1.0,) * len(blocks))
    plan = make_plan([cost], [mode], OffloadPolicy(slots=3), budget=1 + sum(blocks), activations=0)
    assert plan.fits and not plan.streamed and plan.peak == plan.least == 1 + sum(blocks)
