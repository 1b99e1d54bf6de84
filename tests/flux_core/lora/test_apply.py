"""LoRAs on a model for a run: as other libraries have them, and as merged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from flux_core import FluxPipeline, OffloadPolicy, compile_blocks
from flux_core.checkpoint.load import load_transformer
from flux_core.lora import lora_applied, match_lora, merge_loras
from flux_core.models.compile import compiled_forward
from tests import tiny_models
from tests.flux_core.lora.lora_files import diffusers_lora, new_model, pair, write


@pytest.mark.parametrize("dora", [False, True])
def test_a_lora_of_diffusers_does_what_it_does_there(dora, tmp_path):
    """Against diffusers' own transformer with the adapter loaded by peft."""
    theirs = tiny_models.diffusers_transformer().requires_grad_(False)
    file = diffusers_lora("transformer.")
    ranks = {
        k.removeprefix("transformer.").removesuffix(".lora_A.weight"): len(v)
        for k, v in file.items()
        if "lora_A" in k
    }
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    config = LoraConfig(
        r=4,
        lora_alpha=4,
        target_modules=list(ranks),
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),
        use_dora=dora,
    )
    kwargs = tiny_models.inputs()
    path = tiny_models.save(theirs.state_dict(), tmp_path / "model.safetensors")
    ours = load_transformer(path, precision="fp32")
    inject_adapter_in_model(config, theirs)
    state = {k.removeprefix("transformer."): v for k, v in file.items()}
    if dora:
        magnitudes = {
            name: 0.5 + torch.rand(theirs.get_submodule(name).out_features) for name in ranks
        }
        state |= {f"{name}.lora_magnitude_vector": m for name, m in magnitudes.items()}
        file |= {f"transformer.{name}.dora_scale": m[:, None] for name, m in magnitudes.items()}
    missing = set_peft_model_state_dict(theirs, state)
    assert not missing.unexpected_keys
    lora = write(file, tmp_path)
    assert not match_lora(lora, ours).unmatched
    with torch.no_grad():
        expected = theirs(**tiny_models.to_diffusers(kwargs), return_dict=False)[0]
        plain = ours(**kwargs)
        with lora_applied(ours, [(lora, 1.0)]):
            assert tiny_models.relative(ours(**kwargs), expected) < 1e-5
        assert torch.equal(ours(**kwargs), plain)
        merged = merge_loras(copy.deepcopy(ours), [(lora, 1.0)])
        assert tiny_models.relative(merged(**kwargs), expected) < 1e-5


def test_ten_loras_add_up(tmp_path):
    model = new_model()
    stack = [
        (write(diffusers_lora("transformer.", seed=seed), tmp_path), 0.1 * (seed + 1))
        for seed in range(10)
    ]
    kwargs = tiny_models.inputs()
    merged = merge_loras(copy.deepcopy(model), stack)
    with torch.no_grad(), lora_applied(model, stack):
        assert tiny_models.relative(model(**kwargs), merged(**kwargs)) < 1e-5


def test_another_strength_compiles_nothing_again_and_is_the_same_as_anew(tmp_path):
    torch._dynamo.reset()
    compiled_forward.cache_clear()
    model = new_model()
    lora = write(diffusers_lora("transformer."), tmp_path)
    kwargs, counter = tiny_models.inputs(), CompileCounter()
    compile_blocks(model, counter)
    with torch.no_grad():
        with lora_applied(model, [(lora, 0.5)]):
            model(**kwargs)
        frames = counter.frame_count
        with lora_applied(model, [(lora, 1.3)]):
            changed = model(**kwargs)
        assert counter.frame_count == frames
        merged = merge_loras(compile_blocks(copy.deepcopy(model), ""), [(lora, 1.3)])
        assert tiny_models.relative(changed, merged(**kwargs)) < 1e-5
    compile_blocks(model, "")
    torch._dynamo.reset()


def test_a_run_precomputes_modulations_with_their_loras(tmp_path):
    """Modulations are computed before the first step, of layers with their LoRAs beside them."""
    file = {}
    pipeline = FluxPipeline.from_pocket(precision="fp32", policy=OffloadPolicy("none"))
    for name, layer in pipeline.transformer.named_modules():
        if name.endswith("mod.lin"):
            down, up = pair((layer.out_features, layer.in_features), 2)
            key = f"diffusion_model.{name}"
            file |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
    lora = write(file, tmp_path)
    settings = {"width": 64, "height": 64, "steps": 2}
    plain = pipeline("a red circle", **settings).images
    applied = pipeline("a red circle", **settings, loras=[(lora, 1.0)]).images
    assert not torch.equal(applied, plain)
    assert torch.equal(pipeline("a red circle", **settings).images, plain)
    for policy in (OffloadPolicy("stream"), OffloadPolicy("component")):
        pipeline.policy = policy
        again = pipeline("a red circle", **settings, loras=[(lora, 1.0)]).images
        assert torch.equal(again, applied)
    merge_loras(pipeline.transformer, [(lora, 1.0)])
    merged = pipeline("a red circle", **settings).images
    assert tiny_models.relative(merged, applied) < 1e-3
