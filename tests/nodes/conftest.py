"""The pocket model's wires, opened once for each file of tests."""

from __future__ import annotations

import pytest
from fluxfit.nodes import NODE_CLASS_MAPPINGS, headless

from flux_core import OffloadPolicy


@pytest.fixture(scope="module")
def loaded():
    node = NODE_CLASS_MAPPINGS["FluxLoaderFP8"]
    values = {
        name: options.get("default", kind[0])
        for name, (kind, options) in headless.input_specs(node).items()
        if headless.is_widget(kind)
    }
    return node().load(**values, policy=OffloadPolicy("component"))


@pytest.fixture(scope="module")
def positive(loaded):
    encode = NODE_CLASS_MAPPINGS["FluxTextEncode"]()
    return encode.encode(loaded[1], "a red circle on white", 3.5)[0]
