"""Blocks that are compiled."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from flux_core import FluxPipeline, OffloadPolicy, compile_blocks
from flux_core.models.compile import compiled_forward
from tests.flux_core.offload.pocket_pictures import SETTINGS


def test_another_seed_prompt_or_number_of_steps_compiles_nothing_again():
    pipeline = FluxPipeline.from_pocket(precision="int8")
    settings = SETTINGS | {"width": 32, "height": 32}
    pipeline("a red circle", **settings)
    torch._dynamo.reset()
    pipeline.transformer = torch.compile(pipeline.transformer, backend="eager")
    pipeline("a red circle", **settings)
    with torch.compiler.set_stance("fail_on_recompile"):
        pipeline("a green star on white", **settings | {"steps": 5, "seed": 3, "guidance": 2.0})
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", ["none", "component", "stream", "auto"])
def test_a_run_compiles_each_class_of_blocks_once(mode):
    """Another prompt, seed and number of steps compile nothing; the counter runs what was traced
    as it is, so that bits are those of an eager run."""
    torch._dynamo.reset()
    compiled_forward.cache_clear()
    policy = OffloadPolicy(mode, separate_memory=True)
    pipeline = FluxPipeline.from_pocket(device="cpu", policy=policy)
    settings = {"width": 64, "height": 64}
    eager = pipeline("a red circle", steps=2, **settings).images
    counter = CompileCounter()
    compile_blocks(pipeline.transformer, counter)  # type: ignore[arg-type]
    try:
        compiled = pipeline("a red circle", steps=2, **settings).images
        assert counter.frame_count == 2
        pipeline("a blue ring", steps=3, seed=2, **settings)
        assert counter.frame_count == 2
    finally:
        compile_blocks(pipeline.transformer, "")
        torch._dynamo.reset()
    assert torch.equal(compiled, eager)
