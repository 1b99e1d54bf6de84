"""A sample of the damaged files that ``python -m tests.wild.grammar`` has thousands of."""

from __future__ import annotations

import pytest

from .grammar import fault_of
from .readers import READERS

SAMPLE = 10


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.name)
def test_a_damaged_file_loads_or_is_one_error_of_one_line(reader, tmp_path):
    faults = {n: fault_of(reader, n, tmp_path / "file") for n in range(SAMPLE)}
    assert not {n: fault for n, fault in faults.items() if fault}
