"""A native file that many tests read, or break."""

from __future__ import annotations

import pytest

from flux_core import (
    load_transformer,
)
from tests import tiny_models


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """A native fp32 file and its tensors."""
    folder = tmp_path_factory.mktemp("native")
    path = tiny_models.save(
        tiny_models.diffusers_transformer().state_dict(), folder / "d.safetensors"
    )
    state = load_transformer(path, precision="fp32").state_dict()
    return tiny_models.save(state, folder / "n.safetensors"), state
