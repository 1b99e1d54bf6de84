"""What travels on wires."""

from __future__ import annotations

import pytest
from fluxfit.nodes.conditioning import conditioning_of


def test_conditioning_of_something_else_is_refused():
    with pytest.raises(ValueError, match="positive is dict, expected CONDITIONING"):
        conditioning_of({})
