"""Names of one LoRA in the spellings that other libraries write."""

from __future__ import annotations

import copy

import pytest
import torch

from flux_core import CheckpointError, FluxPipeline
from flux_core.lora import match_lora, merge_loras
from flux_core.lora.match import lora_report, lora_targets
from tests.flux_core.lora.lora_files import HIDDEN, diffusers_lora, new_model, pair, write


def flat(key: str, end: str) -> str:
    """A key with underscores for the dots of its layer's name."""
    name, _, rest = key.partition(".lora_")
    return (
        name.replace(".", "_")
        + end
        + (".lora_down.weight" if rest[0] == "A" else ".lora_up.weight")
    )


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
        lambda k: "transformer." + k.replace("attn.", "_orig_mod.attn."),
        lambda k: "module.transformer." + k,
        lambda k: "unet.base_model.model." + k.replace(".lora_A", ".base_layer.lora_A"),
        lambda k: "base_model.model." + k.replace(".weight", ".my-adapter_1.weight"),
        lambda k: "lycoris_" + flat(k, ""),
        lambda k: "lora_unet_" + flat(k, "_"),  # OneTrainer and others end names with a stroke
        lambda k: "lora_unet." + k,
        lambda k: "diffusion_model." + k,
        lambda k: "model.diffusion_model." + k,
        lambda k: k.removesuffix(".weight"),
    ],
)
def test_other_spellings_of_diffusers_names_are_the_same(rename, tmp_path):
    plain = diffusers_lora("")
    renamed = {rename(key): value for key, value in plain.items()}
    model = new_model()
    a = merge_loras(copy.deepcopy(model), [(write(plain, tmp_path), 1.0)])
    b = merge_loras(copy.deepcopy(model), [(write(renamed, tmp_path), 1.0)])
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_diffsynths_names_are_those_of_the_same_layers(tmp_path):
    names = {
        "transformer_blocks.{}.attn.to_q": "blocks.{}.attn.a_to_q",
        "transformer_blocks.{}.attn.add_v_proj": "blocks.{}.attn.b_to_v",
        "transformer_blocks.{}.attn.to_add_out": "blocks.{}.attn.b_to_out",
        "transformer_blocks.{}.ff_context.net.2": "blocks.{}.ff_b.2",
        "transformer_blocks.{}.norm1.linear": "blocks.{}.norm1_a.linear",
        "single_transformer_blocks.{}.attn.to_k": "single_blocks.{}.a_to_k",
        "single_transformer_blocks.{}.proj_mlp": "single_blocks.{}.proj_in_besides_attn",
        "single_transformer_blocks.{}.proj_out": "single_blocks.{}.proj_out",
        "single_transformer_blocks.{}.norm.linear": "single_blocks.{}.norm.linear",
    }
    model = new_model()
    targets = lora_targets(model)
    for theirs, diffsynth in names.items():
        for number in (0, 2):
            assert targets[diffsynth.format(number)] == targets[theirs.format(number)]
    fused = (
        ("blocks.1.attn.a_to_qkv", "double_blocks.1.img_attn.qkv"),
        (
            "single_blocks.1.to_qkv_mlp",
            "single_blocks.1.linear1",
        ),
    )
    for diffsynth, ours in fused:
        assert targets[diffsynth] == targets[ours]
    target = targets["blocks.1.attn.a_to_qkv"]
    down, up = pair((target.count, target.width), 2)
    key = "pipe.dit.blocks.1.attn.a_to_qkv"
    file = {f"{key}.lora_A.default.weight": down, f"{key}.lora_B.default.weight": up}
    assert list(match_lora(write(file, tmp_path), model).deltas) == ["double_blocks.1.img_attn.qkv"]


def test_two_adapters_in_one_file_are_refused(tmp_path):
    down, up = pair((HIDDEN, HIDDEN), 2)
    name = "transformer_blocks.0.attn.to_q"
    file = {f"{name}.lora_A.{adapter}.weight": down for adapter in ("default", "style")} | {
        f"{name}.lora_B.default.weight": up
    }
    with pytest.raises(CheckpointError, match="are of one layer, expected one adapter"):
        write(file, tmp_path)


TEXT_LAYERS = {
    "clip_l": (
        "encoder.layers.0.mlp.fc1",
        ("", "text_model."),
        ("lora_te1_", "lora_te_", "lora_te1.", "text_encoder.", "text_encoders.clip_l.", "te1."),
    ),
    "t5": (
        "block.0.layer.0.SelfAttention.q",
        ("", "encoder."),
        ("lora_te2_", "lora_te3_", "lora_te2.", "text_encoder_2.", "text_encoders.t5xxl.", "te3."),
    ),
}


@pytest.mark.parametrize("part", TEXT_LAYERS)
def test_text_encoders_are_read_under_every_name_of_theirs(part, tmp_path):
    layer, models, prefixes = TEXT_LAYERS[part]
    encoders = FluxPipeline.from_pocket(precision="fp32").text_encoders
    module = {"clip_l": encoders.clip_l, "t5": encoders.t5}[part]
    ours = models[-1] + layer
    target = module.get_submodule(ours)
    down, up = pair((target.out_features, target.in_features), 2)
    names = [(prefix, model + layer) for prefix in prefixes for model in models]
    if part == "clip_l":
        openai = "transformer.resblocks.0.mlp.c_fc"
        names += [(prefix, openai) for prefix in ("text_encoder.", "lora_te1.", "clip_l.")]
    for prefix, name in names:
        name = name.replace(".", "_") if prefix.endswith("_") else name
        file = {f"{prefix}{name}.lora_down.weight": down, f"{prefix}{name}.lora_up.weight": up}
        lora = write(file, tmp_path)
        assert list(match_lora(lora, module).deltas) == [ours], prefix + name
        message = lora_report(lora, [match_lora(lora, new_model())])
        assert f"2 tensors are for {'CLIP-L' if part == 'clip_l' else 'T5'}" in message
        with pytest.raises(CheckpointError, match="all of it is for .*not wired"):
            merge_loras(new_model(), [(lora, 1.0)])
