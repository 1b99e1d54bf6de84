"""What a node refuses while a graph runs names the node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fluxfit.nodes import headless
from fluxfit.nodes.headless import WorkflowError

API = Path(__file__).resolve().parents[2] / "workflows" / "api"


def graph(name: str, class_type: str, **inputs) -> tuple[dict, str]:
    """A workflow with other values in one of its nodes, and that node's number."""
    data = json.loads((API / f"{name}.json").read_text())
    key = next(key for key, item in data.items() if item["class_type"] == class_type)
    data[key]["inputs"] |= inputs
    return data, key


@pytest.mark.parametrize(
    ("name", "class_type", "inputs", "message"),
    [
        ("lora_control", "FluxFitLoraControl", {"blocks": "double 9: 1"}, "double 9 is past"),
        ("regions", "FluxFitRegion", {"width": 0.0}, "region"),
        ("redux_variation", "FluxFitRedux", {"grid": 9}, "the grid of a picture's tokens is 9"),
        ("inpaint_crop_stitch", "FluxFitCropForInpaint", {"width": 0, "height": 256}, "crop"),
    ],
)
def test_refusals_name_their_node(name, class_type, inputs, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, key = graph(name, class_type, **inputs)
    for item in data.values():
        if "steps" in item["inputs"]:
            item["inputs"]["steps"] = 1
    with pytest.raises(WorkflowError, match=rf"node {key} \({class_type}\): .*{message}"):
        headless.run(headless.from_api(data))
