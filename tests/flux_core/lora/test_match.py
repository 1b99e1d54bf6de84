"""The layers that a LoRA's names mean, in every part, and what fits none."""

from __future__ import annotations

import copy

import pytest
import torch

from flux_core import CheckpointError, FluxPipeline, quantize
from flux_core.lora import lora_applied, match_lora, merge_loras
from flux_core.lora.match import refuse_unmatched
from tests import tiny_models
from tests.flux_core.lora.lora_files import HIDDEN, difference, new_model, pair, write


def test_xlabs_streams_and_single_blocks(tmp_path):
    shapes = {
        "double_blocks.0.processor.qkv_lora1": ("double_blocks.0.img_attn.qkv", 3),
        "double_blocks.0.processor.proj_lora1": ("double_blocks.0.img_attn.proj", 1),
        "double_blocks.1.processor.qkv_lora2": ("double_blocks.1.txt_attn.qkv", 3),
        "double_blocks.1.processor.proj_lora2": ("double_blocks.1.txt_attn.proj", 1),
        "single_blocks.2.processor.qkv_lora": ("single_blocks.2.linear1", 3),
    }
    file, added = {}, {}
    for key, (name, rows) in shapes.items():
        down, up = pair((rows * HIDDEN, HIDDEN), 4)
        file |= {f"{key}.down.weight": down, f"{key}.up.weight": up}
        added[name] = up @ down
    added["single_blocks.2.linear1"] = torch.cat(
        [added["single_blocks.2.linear1"], torch.zeros(4 * HIDDEN, HIDDEN)]
    )
    model = new_model()
    differences = difference(
        model, merge_loras(copy.deepcopy(model), [(write(file, tmp_path), 1.0)])
    )
    assert differences.keys() == added.keys()
    assert all(tiny_models.relative(differences[name], added[name]) < 1e-5 for name in added)


def test_text_encoders_are_matched_by_every_prefix(tmp_path):
    encoders = FluxPipeline.from_pocket(precision="fp32").text_encoders
    cases = {
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": encoders.clip_l,
        "text_encoder.text_model.encoder.layers.0.mlp.fc1": encoders.clip_l,
        "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1": encoders.clip_l,
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q": encoders.t5,
        "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q": encoders.t5,
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q": encoders.t5,
    }
    for key, module in cases.items():
        name = "text_model.encoder.layers.0.mlp.fc1"
        if module is encoders.t5:
            name = "encoder.block.0.layer.0.SelfAttention.q"
        layer = module.get_submodule(name)
        down, up = pair((layer.out_features, layer.in_features), 2)
        lora = write({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, tmp_path)
        assert list(match_lora(lora, module).deltas) == [name]
        other = encoders.clip_l if module is encoders.t5 else encoders.t5
        assert not match_lora(lora, other).deltas
    before = encoders.encode(["a red circle"]).context
    with lora_applied(encoders.t5, [(lora, 1.0)]):
        assert not torch.equal(encoders.encode(["a red circle"]).context, before)
    assert torch.equal(encoders.encode(["a red circle"]).context, before)


def test_what_does_not_fit_is_said(tmp_path):
    model = new_model()
    down, up = pair((64, 64), 2)
    lora = write(
        {
            "unet.down_blocks.0.attn.to_q.lora_A.weight": down,
            "unet.down_blocks.0.attn.to_q.lora_B.weight": up,
        },
        tmp_path,
    )
    match = match_lora(lora, model)
    assert not match.matched and len(match.unmatched) == 2
    with pytest.raises(ValueError, match=r"nothing of it fits .* found unet\.down_b.*expected"):
        refuse_unmatched(lora, [match])
    with pytest.raises(ValueError, match="nothing of it fits"):
        merge_loras(model, [(lora, 1.0)])
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    lora = write({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path)
    match = match_lora(lora, model)
    message = rf"made for a layer of \(64, 64\), this one is \({3 * HIDDEN}, {HIDDEN}\)"
    with pytest.raises(ValueError, match=message):
        refuse_unmatched(lora, [match])
    lora = write({f"{name}.lora_A.weight": down}, tmp_path)
    assert "lacks up" in str(match_lora(lora, model))
    with pytest.raises(CheckpointError, match="expected a LoRA"):
        write({"model.weight": down}, tmp_path)
    with pytest.raises(ValueError, match="load it in bf16 to merge"):
        merge_loras(quantize(model, "int8"), [(lora, 1.0)])


@pytest.mark.parametrize("widens", [False, True])
@pytest.mark.parametrize("fault", ["infinite", "no bias", "norm"])
def test_a_merge_that_fails_leaves_the_model_as_it_was(fault, widens, tmp_path):
    model = new_model()
    qkv, proj = (f"diffusion_model.double_blocks.0.img_attn.{name}" for name in ("qkv", "proj"))
    down, up = pair((3 * HIDDEN, HIDDEN), 2)
    file = {f"{qkv}.lora_A.weight": down, f"{qkv}.lora_B.weight": up}
    if widens:
        down, up = pair((HIDDEN, 128), 2)
        file |= {"img_in.lora_A.weight": down, "img_in.lora_B.weight": up}
    down, up = pair((HIDDEN, HIDDEN), 2)
    strength = 1.0
    if fault == "infinite":
        up = up * 1e38
        down = down * 1e38
    elif fault == "norm":
        model, strength = model.half(), 900.0
        norm = "double_blocks.0.img_attn.norm.key_norm.scale"
        file[norm] = torch.full((model.get_submodule(norm[:-6]).scale.numel(),), 3e4)
    else:
        model.double_blocks[0].img_attn.proj.bias = None
        file[f"{proj}.lora_B.bias"] = torch.ones(HIDDEN)
    file |= {f"{proj}.lora_A.weight": down, f"{proj}.lora_B.weight": up}
    before, config = copy.deepcopy(model.state_dict()), model.config
    message = "no bias" if fault == "no bias" else "makes .* infinite, or NaN"
    with pytest.raises(ValueError, match=message):
        merge_loras(model, [(write(file, tmp_path), strength)])
    after = model.state_dict()
    assert model.config == config and after.keys() == before.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
