"""A sample of the combinations that ``python -m tests.wild.combinations`` has hundreds of."""

from __future__ import annotations

import pytest

from .combinations import problem_of
from .scenes import Combination


@pytest.mark.parametrize("number", range(5), ids=lambda n: str(Combination.of(n)))
def test_a_combination_has_its_bits_and_its_memory_under_every_policy(number, tmp_path):
    assert problem_of(Combination.of(number), tmp_path) == ""
