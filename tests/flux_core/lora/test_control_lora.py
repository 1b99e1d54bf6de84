"""LoRAs that make a model read a picture beside the noise."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from flux_core import FluxPipeline, FluxTransformer, load_lora, quantize
from flux_core.lora import lora_applied, match_lora, merge_loras
from flux_core.lora.match import refuse_unmatched
from flux_core.offload.placement import placement_of
from tests import tiny_models

CPU = torch.device("cpu")


def control_file(model: FluxTransformer, spell=lambda name: name) -> dict[str, torch.Tensor]:
    """A control LoRA in BFL's names: every layer with a bias, a wider ``img_in``, all norms."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    file = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ("blocks" in name or name == "img_in"):
            width = 2 * module.in_features if name == "img_in" else module.in_features
            file[f"{name}.lora_A.weight"] = random(4, width)
            file[f"{name}.lora_B.weight"] = random(module.out_features, 4)
            file[f"{name}.lora_B.bias"] = random(module.out_features)
        if type(module).__name__ == "RMSNorm":  # of either package
            file[f"{name}.scale"] = 1 + random(*module.scale.shape)
    return {spell(name): tensor for name, tensor in file.items()}


def by_hand(model: FluxTransformer, file: dict[str, torch.Tensor], strength: float) -> nn.Module:
    """The model as the file says, expected from full matrices."""
    expected = FluxTransformer(dataclasses.replace(tiny_models.DEV, in_channels=128))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    state["img_in.weight"] = torch.cat([state["img_in.weight"]] * 2, dim=1)
    state["img_in.weight"][:, 64:] = 0
    for key in file:
        name, _, kind = key.partition(".lora_")
        if kind == "A.weight":
            added = file[f"{name}.lora_B.weight"] @ file[f"{name}.lora_A.weight"]
            state[f"{name}.weight"] += strength * added
            state[f"{name}.bias"] += strength * file[f"{name}.lora_B.bias"]
        elif key.endswith(".scale"):
            state[key] = torch.lerp(state[key], file[key], strength)
    expected.load_state_dict(state)
    return expected.eval()


def comfy(name: str) -> str:
    """As ComfyUI converts them."""
    name = name.replace(".lora_B.bias", ".diff_b").replace("_norm.scale", "_norm.set_weight")
    return f"diffusion_model.{name}"


@pytest.mark.parametrize("spell", [lambda name: name, comfy])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_control_lora_is_what_its_file_says(spell, strength, tmp_path):
    model = tiny_models.flux_transformer().requires_grad_(False)
    file = control_file(model)
    spelled = {spell(name): tensor for name, tensor in file.items()}
    if spell is comfy:
        spelled["diffusion_model.img_in.reshape_weight"] = torch.tensor([tiny_models.HIDDEN, 128])
    lora = load_lora(tiny_models.save(spelled, tmp_path / "control.safetensors"))
    match = match_lora(lora, model)
    assert not match.unmatched and not match.refused
    assert len(match.norms) == 4 * tiny_models.DEV.depth + 2 * tiny_models.DEV.depth_single_blocks
    expected = by_hand(model, file, strength)
    kwargs = tiny_models.inputs()
    plain = model(**kwargs)
    wide = kwargs | {"img": torch.cat([kwargs["img"], kwargs["img"].flip(1)], dim=-1)}
    assert model.reads == 64
    with torch.no_grad(), lora_applied(model, [(lora, strength)]):
        assert model.reads == 128
        assert tiny_models.relative(model(**wide), expected(**wide)) < 1e-5
        with placement_of(model, CPU).running((), 2):
            assert tiny_models.relative(model(**wide), expected(**wide)) < 1e-5
    assert model.reads == 64 and torch.equal(model(**kwargs), plain)
    merged = merge_loras(copy.deepcopy(model), [(lora, strength)])
    assert merged.config.in_channels == merged.reads == 128
    assert tiny_models.relative(merged(**wide), expected(**wide)) < 1e-5


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_it_streams_beside_other_loras_to_the_same_bits(precision, tmp_path):
    model = tiny_models.flux_transformer().requires_grad_(False).bfloat16()
    quantize(model, precision)
    control = load_lora(
        tiny_models.save(control_file(FluxTransformer(tiny_models.DEV)), tmp_path / "a.safetensors")
    )
    down, up = torch.randn(3, 64), 0.1 * torch.randn(tiny_models.HIDDEN, 3)
    narrow = {"lora_unet_img_in.lora_down.weight": down, "lora_unet_img_in.lora_up.weight": up}
    other = load_lora(tiny_models.save(narrow, tmp_path / "b.safetensors"))
    kwargs = tiny_models.inputs()
    kwargs["img"] = torch.cat([kwargs["img"], kwargs["img"].flip(1)], dim=-1)
    with torch.no_grad(), lora_applied(model, [(control, 0.8), (other, 0.5)]):
        expected = model(**kwargs)
        for resident in ((), {0, 4}):
            with placement_of(model, CPU).running(resident, 2) as ring:
                assert all(torch.equal(model(**kwargs), expected) for _ in range(2))
            assert ring.restarts == 0


def test_norms_by_diffusers_names_and_what_does_not_fit(tmp_path):
    model = tiny_models.flux_transformer()
    down, up = torch.randn(2, tiny_models.HIDDEN), torch.randn(tiny_models.HIDDEN, 2)
    key = "transformer.transformer_blocks.0.attn"
    file = {
        f"{key}.to_q.lora_A.weight": down,
        f"{key}.to_q.lora_B.weight": up,
        f"{key}.norm_q.weight": torch.full((tiny_models.HEAD,), 2.0),
        f"{key}.norm_k.weight": torch.ones(3),
    }
    match = match_lora(load_lora(tiny_models.save(file, tmp_path / "a.safetensors")), model)
    (name,) = match.norms
    assert name == "double_blocks.0.img_attn.norm.query_norm"
    assert float(match.norms[name].mean()) == 2.0
    assert "made for a norm of (3,), this one is (128,)" in str(match)


def test_a_norm_that_fits_is_enough_to_be_applied(tmp_path):
    model = tiny_models.flux_transformer()
    name = "single_blocks.1.norm.key_norm"
    file = {f"{name}.scale": torch.full((tiny_models.HEAD,), 3.0)}
    file |= {
        "elsewhere.lora_A.weight": torch.ones(2, 2),
        "elsewhere.lora_B.weight": torch.ones(2, 2),
    }
    lora = load_lora(tiny_models.save(file, tmp_path / "a.safetensors"))
    refuse_unmatched(lora, [match_lora(lora, model)])
    merged = merge_loras(model, [(lora, 1.0)])
    assert torch.equal(merged.get_submodule(name).scale, torch.full((tiny_models.HEAD,), 3.0))


def test_the_pipeline_encodes_the_picture(tmp_path):
    pipeline = FluxPipeline.from_pocket(precision="fp32")
    lora = load_lora(
        tiny_models.save(control_file(pipeline.transformer), tmp_path / "c.safetensors")
    )
    settings = {"width": 64, "height": 64, "steps": 2, "loras": [(lora, 0.3)], "cfg": 2.0}
    drawn = [
        pipeline("a red circle", condition=picture, **settings).images
        for picture in (torch.zeros(1, 64, 64, 3), torch.ones(1, 64, 64, 3))
    ]
    assert tiny_models.relative(*drawn) > 1e-3
