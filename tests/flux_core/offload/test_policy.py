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
        ({"mode": "stream", "slots": 1}, "slots.* is 1, expected 2 to"),
        ({"mode": "stream", "vram_budget": -1}, "vram_budget in bytes is -1, expected at least 0"),
        ({"ram_budget": -1}, "ram_budget in bytes is -1, expected at least 0"),
        ({"parts": {"t5": "fast"}}, "t5 mode is 'fast'"),
        ({"parts": {"unet": "none"}}, "part is 'unet', expected one of transformer"),
    ],
)
def test_bad_policies_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OffloadPolicy(**options)
