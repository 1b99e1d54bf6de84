"""LoRAs that come and go between the runs of one model, whose weights know their places already."""

from __future__ import annotations

import pytest
import torch

from flux_core import FluxPipeline, OffloadPolicy
from flux_core.offload.activations import LiveBytes
from flux_core.offload.pack import named_tensors
from tests import tiny_models

SETTINGS = {"width": 64, "height": 64, "steps": 2, "seed": 1}
LAYERS = {"single": ("single_blocks.",), "double": ("double_blocks.",), "all": ("_blocks.", "_in")}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """A LoRA on some layers, of other numbers in each."""
    folder = tmp_path_factory.mktemp("loras")
    model = FluxPipeline.from_pocket(device="cpu").transformer
    paths = {}
    for seed, (name, parts) in enumerate(LAYERS.items()):
        g, file = torch.Generator().manual_seed(seed), {}
        for layer, module in model.named_modules():
            if hasattr(module, "out_features") and any(part in layer for part in parts):
                file[f"{layer}.lora_A.weight"] = torch.randn(4, module.in_features, generator=g)
                up = torch.randn(module.out_features, 4, generator=g)
                file[f"{layer}.lora_B.weight"] = 0.02 * up
        paths[name] = str(tiny_models.save(file, folder / f"{name}.safetensors"))
    return paths


def new_pipeline(mode: str) -> FluxPipeline:
    policy = OffloadPolicy(mode, separate_memory=True)
    return FluxPipeline.from_pocket(device="cpu", precision="fp32", policy=policy)


@pytest.fixture(scope="module")
def fresh(files) -> dict[str, torch.Tensor]:
    """What each LoRA draws as the first that a model gets."""
    pictures = {"": new_pipeline("none")("a red circle", **SETTINGS).images}
    for name, path in files.items():
        drawn = new_pipeline("none")("a red circle", **SETTINGS, loras=[(path, 0.7)])
        pictures[name] = drawn.images
    assert all(not torch.equal(pictures[""], pictures[name]) for name in files)
    return pictures


@pytest.mark.parametrize("mode", ["none", "component", "stream", "auto"])
@pytest.mark.parametrize(
    "order", [("", "single"), ("all", "", "double"), ("", "all", "single", "")]
)
def test_each_draws_as_if_it_were_the_first(order, mode, files, fresh):
    pipeline = new_pipeline(mode)
    for name in order:
        loras = [(files[name], 0.7)] if name else []
        drawn = pipeline("a red circle", **SETTINGS, loras=loras)
        assert torch.equal(drawn.images, fresh[name]), name


def test_branches_of_blocks_pass_through_with_them(files):
    """A LoRA on streamed blocks takes no more memory for a run without it that came before."""
    peaks = []
    for before in ([], [[]]):
        pipeline = new_pipeline("stream")
        for loras in before:
            pipeline("a red circle", **SETTINGS, loras=loras)
        loras = [(files["single"], 0.7)]
        pipeline("a red circle", **SETTINGS, loras=loras)
        with LiveBytes() as counted:
            pipeline("a red circle", **SETTINGS, loras=loras)
        peaks.append(counted.peak)
    assert abs(peaks[0] - peaks[1]) < 0.01 * peaks[0]


def test_what_is_left_out_is_left_out_with_all_that_is_inside():
    inner = torch.nn.Sequential(torch.nn.Linear(2, 2))
    outer = torch.nn.Sequential(inner, torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    left_out = {id(inner), id(outer[2])}
    inner.append(torch.nn.Linear(2, 2))  # attached behind the look
    assert {name for name, *_ in named_tensors(outer, left_out)} == {"1.weight", "1.bias"}
    assert not list(named_tensors(outer, {id(outer)}))
