"""The files of a trained LoRA do what was trained."""

from __future__ import annotations

import pytest
import torch

from flux_core import load_lora, load_transformer
from flux_core.lora import lora_applied, match_lora
from flux_core.lora.save import save_lora
from flux_core.lora.trained import TrainedLora
from tests import tiny_models


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_what_is_written_does_what_was_trained(format, tmp_path):
    model = load_transformer(
        tiny_models.save(
            tiny_models.diffusers_transformer().state_dict(), tmp_path / "m.safetensors"
        ),
        precision="fp32",
    )
    names = ("attention", "mlp", "modulation", r"final_layer\..*", "img_in")
    lora = TrainedLora(model, names, 3, 6.0)
    for branch in lora.layer_branches:
        torch.nn.init.normal_(branch.up, 0, 0.05)
    path = tmp_path / "lora.safetensors"
    save_lora(model, lora.factors(), path, alpha=6.0, format=format, dtype=torch.float32)
    kwargs = tiny_models.inputs()
    with torch.no_grad():
        with lora.on(model):
            expected = model(**kwargs)
        plain = model(**kwargs)
        assert tiny_models.relative(plain, expected) > 1e-2
        opened = load_lora(path)
        match = match_lora(opened, model)
        assert not match.unmatched and not match.refused
        with lora_applied(model, [(opened, 1.0)]):
            assert tiny_models.relative(model(**kwargs), expected) < 1e-5


def test_diffusers_opens_it_with_the_same_effect(tmp_path):
    theirs = tiny_models.diffusers_transformer()
    model = load_transformer(
        tiny_models.save(theirs.state_dict(), tmp_path / "m.safetensors"), precision="fp32"
    )
    lora = TrainedLora(model, ("attention", "mlp", "modulation", r"final_layer\..*"), 3, 6.0)
    for branch in lora.layer_branches:
        torch.nn.init.normal_(branch.up, 0, 0.05)
    path = save_lora(
        model, lora.factors(), tmp_path / "lora.safetensors", alpha=6.0, dtype=torch.float32
    )
    from diffusers import FluxPipeline

    state = FluxPipeline.lora_state_dict(path)
    theirs.load_lora_adapter(state, prefix="transformer")
    kwargs = tiny_models.inputs()
    with torch.no_grad():
        velocity = theirs(**tiny_models.to_diffusers(kwargs), return_dict=False)[0]
        with lora.on(model):
            assert tiny_models.relative(velocity, model(**kwargs)) < 1e-5
