"""What a LoRA of each family adds to a weight."""

from __future__ import annotations

import copy

import pytest
import torch

from flux_core.lora import lora_applied, match_lora, merge_loras
from tests import tiny_models
from tests.flux_core.lora.lora_files import (
    FAMILIES,
    HIDDEN,
    difference,
    native_files,
    new_model,
    pair,
    write,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_native_families_add_what_they_say(family, tmp_path):
    file, added = native_files(family)
    model, lora = new_model(), write(file, tmp_path)
    match = match_lora(lora, model)
    assert not match.unmatched and not match.refused and len(match.matched) == len(file)
    merged = merge_loras(copy.deepcopy(model), [(lora, 0.7)])
    differences = difference(model, merged)
    assert differences.keys() == added.keys()
    for name, weight in added.items():
        assert tiny_models.relative(differences[name], 0.7 * weight) < 1e-5, name
    kwargs = tiny_models.inputs()
    with torch.no_grad(), lora_applied(model, [(lora, 0.7)]) as count:
        assert count == len(added)
        applied = model(**kwargs)
    with torch.no_grad():
        assert tiny_models.relative(applied, merged(**kwargs)) < 1e-5
        assert tiny_models.relative(model(**kwargs), merged(**kwargs)) > 1e-3


def test_columns_of_a_dora_are_stretched(tmp_path):
    """LyCORIS' DoRA may have a magnitude a column."""
    name, shape = "double_blocks.1.txt_mlp.2", (HIDDEN, 4 * HIDDEN)
    down, up = pair(shape, 4)
    magnitude = 0.5 + torch.rand(1, shape[1])
    key = f"lora_unet_{name.replace('.', '_')}"
    file = {
        f"{key}.lora_down.weight": down,
        f"{key}.lora_up.weight": up,
        f"{key}.dora_scale": magnitude,
    }
    model, lora = new_model(), write(file, tmp_path)
    own = model.get_submodule(name).weight
    wanted = own + up @ down
    wanted = wanted * magnitude / wanted.norm(dim=0, keepdim=True)
    merged = merge_loras(copy.deepcopy(model), [(lora, 1.0)])
    assert tiny_models.relative(merged.get_submodule(name).weight, wanted) < 1e-5
    kwargs = tiny_models.inputs()
    with torch.no_grad(), lora_applied(model, [(lora, 1.0)]):
        assert tiny_models.relative(model(**kwargs), merged(**kwargs)) < 1e-5
