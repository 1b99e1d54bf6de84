"""Branches beside quantized and streamed layers, which leave no trace."""

from __future__ import annotations

import pytest
import torch

from flux_core import quantize
from flux_core.lora import Lora, lora_applied
from flux_core.lora.branch import LinearBranch
from flux_core.offload.placement import placement_of
from flux_core.quant import FORMATS
from tests import tiny_models
from tests.flux_core.lora.lora_files import (
    HIDDEN,
    diffusers_lora,
    native_files,
    new_model,
    random,
    write,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["bf16", *sorted(FORMATS)])
def test_ten_loras_stream_to_the_same_bits_and_leave_none_changed(precision, tmp_path):
    model = quantize(new_model().bfloat16(), precision)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    loras = [write(diffusers_lora("transformer.", True, seed), tmp_path) for seed in range(8)]
    loras += [write(native_files(family)[0], tmp_path) for family in ("lokr", "loha")]
    stack = [(lora, 0.1 * (i + 1)) for i, lora in enumerate(loras)]
    kwargs = tiny_models.inputs()
    with torch.no_grad():
        plain = model(**kwargs)
        with lora_applied(model, stack):
            expected = model(**kwargs)
            assert tiny_models.relative(expected, plain) > 1e-3
            for resident, slots in (((), 2), ({0, 4, 5}, 3)):
                with placement_of(model, CPU).running(resident, slots) as ring:
                    assert all(torch.equal(model(**kwargs), expected) for _ in range(2))
                assert ring.restarts == 0
        assert torch.equal(model(**kwargs), plain)
    assert not any(isinstance(m, LinearBranch) for m in model.modules())
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(
        torch.equal(after[k].view(torch.uint8), v.view(torch.uint8)) for k, v in state.items()
    )


def test_streamed_blocks_whose_loras_are_for_other_rows_share_no_twin():
    """LoKr on a query here and on a key there: tensors of one layout for rows of their own."""
    model, layers = new_model(), {}
    for block, member in enumerate("qqk"):
        name = f"transformer_blocks.{block}.attn.to_{member}"
        factors = random(8, 4, seed=block), random(HIDDEN // 8, HIDDEN // 4, seed=block)
        layers["transformer", name] = dict(zip(("lokr_w1", "lokr_w2"), factors, strict=True))
    lora = Lora("members", layers, {key: (key[1],) for key in layers})
    kwargs = tiny_models.inputs()
    with torch.no_grad(), lora_applied(model, [(lora, 1.0)]):
        expected = model(**kwargs)
        with placement_of(model, CPU).running((), 2):
            assert torch.equal(model(**kwargs), expected)
