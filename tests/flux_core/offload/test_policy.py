"""What a policy refuses."""

from __future__ import annotations

import pytest

from flux_core import (
    OffloadPolicy,
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "fast"}, "expected one of auto, none, component, stream"),
        ({"mode": "stream", "slots": 1}, "expected at least 2"),
        ({"mode": "stream", "vram_budget": -1}, "vram_budget is -1 bytes, expected 0 or more"),
        ({"ram_budget": -1}, "ram_budget is -1 bytes, expected 0 or more"),
        ({"parts": {"t5": "fast"}}, "t5 mode is 'fast'"),
        ({"parts": {"unet": "none"}}, "part is 'unet', expected one of transformer"),
    ],
)
def test_bad_policies_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OffloadPolicy(**options)
