"""Blocks that are compiled."""

from __future__ import annotations

import torch

from flux_core import (
    FluxPipeline,
)
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
