"""Text encoders as people have them: in old names, under prefixes, and other models' like them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from flux_core import (
    CheckpointError,
    load_clip_l,
    load_t5,
)
from flux_core.checkpoint.inspect import describe_file
from flux_core.checkpoint.reader import SafetensorsFile
from flux_core.models.text_encoders import clip_l_config
from flux_core.pocket import pocket_file
from tests import tiny_models


class TestOtherT5s:
    """Of other models, in the folder where FLUX.1's lies."""

    def file(self, folder, change):
        source = SafetensorsFile(pocket_file("text_encoders", "_t5"))
        tensors = {name: source.read(name) for name in source.entries}
        change(tensors)
        path = folder / "t5.safetensors"
        save_file(tensors, path)
        return path

    @pytest.mark.parametrize("name", ["umt5", "mt5"])
    def test_are_refused_by_name(self, name, tmp_path):
        bias = "layer.0.SelfAttention.relative_attention_bias.weight"

        def change(tensors):
            if name == "umt5":
                first = tensors[f"encoder.block.0.{bias}"]
                tensors[f"encoder.block.1.{bias}"] = first.clone()
            else:
                width = tensors["shared.weight"].shape[1]
                tensors["shared.weight"] = torch.zeros(250_112, width, dtype=torch.bfloat16)

        path = self.file(tmp_path, change)
        with pytest.raises(CheckpointError, match="expected a T5 encoder, found a UMT5 or mT5"):
            load_t5(path)
        assert "UMT5" in describe_file(path)

    def test_a_language_model_is_none_of_them(self, tmp_path):
        tensors = {
            "model.embed_tokens.weight": torch.zeros(151_936, 8),
            "model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8),
        }
        path = tmp_path / "m.safetensors"
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match="found a language model"):
            load_t5(path)

    def test_what_was_not_changed_loads(self, tmp_path):
        assert load_t5(self.file(tmp_path, lambda tensors: None))


def clip_files() -> dict[str, dict[str, torch.Tensor]]:
    """The pocket's CLIP-L under every name that libraries give it."""
    source = SafetensorsFile(pocket_file("text_encoders", "_clip_l"))
    native = {name: source.read(name).float() for name in source.entries}
    openai: dict[str, torch.Tensor] = {}
    renamed = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    layers = clip_l_config({k: tuple(v.shape) for k, v in native.items()}).num_hidden_layers
    for i in range(layers):
        ours, theirs = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            members = [native[f"{ours}.self_attn.{m}_proj.{kind}"] for m in "qkv"]
            openai[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(members)
            for mine, other in renamed.items():
                openai[f"{theirs}.{other}.{kind}"] = native[f"{ours}.{mine}.{kind}"]
    openai["token_embedding.weight"] = native["text_model.embeddings.token_embedding.weight"]
    openai["positional_embedding"] = native["text_model.embeddings.position_embedding.weight"]
    for kind in ("weight", "bias"):
        openai[f"ln_final.{kind}"] = native[f"text_model.final_layer_norm.{kind}"]
    openai["text_projection"] = torch.zeros(2, 2)
    flat = {name.removeprefix("text_model."): t for name, t in native.items()}
    return {
        "native": native,
        "flat": flat,
        "openai": openai,
        "in a folder's model": {f"text_encoder.{k}": t for k, t in flat.items()},
        "host": {f"text_encoders.clip_l.transformer.{k}": t for k, t in native.items()},
        "sd1": {f"cond_stage_model.transformer.{k}": t for k, t in native.items()},
        "openai, host": {f"clip_l.{k}": t for k, t in openai.items()},
    }


@pytest.mark.parametrize("spelling", clip_files())
def test_clip_is_read_under_every_name(spelling, tmp_path):
    path = tiny_models.save(clip_files()[spelling], tmp_path / "clip.safetensors")
    ours = load_clip_l(pocket_file("text_encoders", "_clip_l"), precision="fp32").state_dict()
    theirs = load_clip_l(path, precision="fp32").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "clip_l" in describe_file(path)


def test_t5_is_read_without_the_model_around_it_and_under_prefixes(tmp_path):
    source = SafetensorsFile(pocket_file("text_encoders", "_t5"))
    native = {name: source.read(name).float() for name in source.entries}
    stack = {
        "embed_tokens.weight" if k == "shared.weight" else k.removeprefix("encoder."): t
        for k, t in native.items()
    }
    ours = load_t5(pocket_file("text_encoders", "_t5"), precision="fp32").state_dict()
    for tensors, prefix in ((stack, ""), (stack, "t5xxl."), (native, "text_encoder_2.")):
        path = tiny_models.save(tensors, tmp_path / "t5.safetensors", prefix)
        theirs = load_t5(path, precision="fp32").state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
