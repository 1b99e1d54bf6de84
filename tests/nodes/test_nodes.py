"""The nodes' faces: texts, ranges, inputs."""

from __future__ import annotations

import pytest
from fluxfit.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, headless


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
class TestFaces:
    def test_everything_is_explained(self, name):
        node = NODE_CLASS_MAPPINGS[name]
        assert len(node.DESCRIPTION) > 40 and node.CATEGORY.startswith("FluxFit")
        assert NODE_DISPLAY_NAME_MAPPINGS[name]
        assert len(node.OUTPUT_TOOLTIPS) == len(node.RETURN_TYPES) == len(node.RETURN_NAMES)
        for key, (_, options) in headless.input_specs(node).items():
            assert len(options.get("tooltip", "")) > 10, key

    def test_numbers_have_ranges_with_a_default_inside(self, name):
        for key, (kind, options) in headless.input_specs(NODE_CLASS_MAPPINGS[name]).items():
            if kind in ("INT", "FLOAT"):
                assert options["min"] <= options["default"] <= options["max"], key

    def test_the_function_takes_every_input(self, name):
        import inspect

        node = NODE_CLASS_MAPPINGS[name]
        parameters = inspect.signature(getattr(node, node.FUNCTION)).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        assert takes_all or set(headless.input_specs(node)) <= set(parameters)
