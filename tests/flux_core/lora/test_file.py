"""Names of one LoRA in the spellings that other libraries write."""

from __future__ import annotations

import copy

import pytest
import torch

from flux_core.lora import merge_loras
from tests.flux_core.lora.lora_files import diffusers_lora, new_model, write


@pytest.mark.parametrize(
    "rename",
    [
        lambda k: "base_model.model." + k.replace(".weight", ".default.weight"),
        lambda k: "transformer." + k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        lambda k: "transformer." + k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
        lambda k: (
            "lora_transformer_"
            + k.split(".lora_")[0].replace(".", "_")
            + (".lora_down.weight" if "lora_A" in k else ".lora_up.weight")
        ),
        lambda k: "transformer." + k,
    ],
)
def test_other_spellings_of_diffusers_names_are_the_same(rename, tmp_path):
    plain = diffusers_lora("")
    renamed = {rename(key): value for key, value in plain.items()}
    model = new_model()
    a = merge_loras(copy.deepcopy(model), [(write(plain, tmp_path), 1.0)])
    b = merge_loras(copy.deepcopy(model), [(write(renamed, tmp_path), 1.0)])
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
