"""Branches beside quantized and streamed layers, which leave no trace."""

from __future__ import annotations

import pytest
import torch

from flux_core import quantize
from flux_core.lora import lora_applied
from flux_core.lora.branch import LinearBranch
from flux_core.offload.placement import placement_of
from flux_core.quant import FORMATS
from tests import tiny_models
from tests.flux_core.lora.lora_files import diffusers_lora, native_files, new_model, write

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
