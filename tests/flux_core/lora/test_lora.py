"""LoRAs of every family: the same weights as other libraries make of them, beside any base."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from flux_core import (
    CheckpointError,
    FluxPipeline,
    FluxTransformer,
    OffloadPolicy,
    compile_blocks,
    quantize,
)
from flux_core.checkpoint.load import load_transformer
from flux_core.lora import load_lora, lora_applied, match_lora, merge_loras
from flux_core.lora.branch import LinearBranch
from flux_core.lora.match import refuse_unmatched
from flux_core.models.compile import compiled_forward
from flux_core.offload.placement import placement_of
from flux_core.quant import FORMATS
from tests import tiny_models as tiny

CPU = torch.device("cpu")
HIDDEN = tiny.HIDDEN
#: Native layers with rows and columns: fused and plain ones, modulation, embedders.
SHAPES = {
    "double_blocks.0.img_attn.qkv": (3 * HIDDEN, HIDDEN),
    "double_blocks.1.txt_mlp.2": (HIDDEN, 4 * HIDDEN),
    "double_blocks.2.img_mod.lin": (6 * HIDDEN, HIDDEN),
    "single_blocks.0.linear1": (7 * HIDDEN, HIDDEN),
    "single_blocks.3.linear2": (HIDDEN, 5 * HIDDEN),
    "txt_in": (HIDDEN, tiny.CONTEXT),
}


def new_model() -> FluxTransformer:
    return tiny.randomise(FluxTransformer(tiny.DEV)).requires_grad_(False)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(hash(shape) + seed))


def pair(shape: tuple[int, int], rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return random(rank, shape[1], seed=seed), random(shape[0], rank, seed=seed + 1)


def native_files(family: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A file in a family that uses native names, and the weights that it must add."""
    file: dict[str, torch.Tensor] = {}
    added: dict[str, torch.Tensor] = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        down, up = pair(shape, 4 + i)
        key = f"lora_unet_{name.replace('.', '_')}"
        if family == "kohya":
            file |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up,
                     f"{key}.alpha": torch.tensor(2.0)}  # fmt: skip
            added[name] = up @ down * 2.0 / len(down)
        elif family == "comfyui":
            key = f"diffusion_model.{name}"
            file |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
            added[name] = up @ down
        elif family == "loha":
            down2, up2 = pair(shape, 4 + i, seed=9)
            file |= {f"{key}.hada_w1_a": up, f"{key}.hada_w1_b": down, f"{key}.hada_w2_a": up2,
                     f"{key}.hada_w2_b": down2, f"{key}.alpha": torch.tensor(3.0)}  # fmt: skip
            added[name] = (up @ down) * (up2 @ down2) * 3.0 / len(down)
        elif family == "lokr":
            w1 = random(8, 4)
            low = pair((shape[0] // 8, shape[1] // 4), 3)
            file |= {f"{key}.lokr_w1": w1, f"{key}.lokr_w2_a": low[1], f"{key}.lokr_w2_b": low[0],
                     f"{key}.alpha": torch.tensor(6.0)}  # fmt: skip
            added[name] = torch.kron(w1, low[1] @ low[0]) * 2.0
        elif family == "lokr whole":
            w1, w2 = random(8, 4), random(shape[0] // 8, shape[1] // 4)
            file |= {f"{key}.lokr_w1": w1, f"{key}.lokr_w2": w2, f"{key}.alpha": torch.tensor(9.0)}
            added[name] = torch.kron(w1, w2)
        else:
            assert family == "diff"
            file |= {f"{key}.diff": random(*shape), f"{key}.diff_b": random(shape[0])}
            added[name] = random(*shape)
    return file, added


FAMILIES = ("kohya", "comfyui", "loha", "lokr", "lokr whole", "diff")


def write(file: dict[str, torch.Tensor], tmp_path: Path):
    return load_lora(tiny.save(file, tmp_path / "lora.safetensors"))


def difference(model: FluxTransformer, merged: FluxTransformer) -> dict[str, torch.Tensor]:
    old, new = model.state_dict(), merged.state_dict()
    return {
        name.removesuffix(".weight"): new[name] - old[name]
        for name in old
        if name.endswith(".weight") and not torch.equal(old[name], new[name])
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_native_families_add_what_they_say(family, tmp_path):
    file, added = native_files(family)
    model, lora = new_model(), write(file, tmp_path)
    found = match_lora(lora, model)
    assert not found.unmatched and not found.refused and len(found.matched) == len(file)
    merged = merge_loras(copy.deepcopy(model), [(lora, 0.7)])
    made = difference(model, merged)
    assert made.keys() == added.keys()
    for name, weight in added.items():
        assert tiny.relative(made[name], 0.7 * weight) < 1e-5, name
    kwargs = tiny.inputs()
    with torch.no_grad(), lora_applied(model, [(lora, 0.7)]) as count:
        assert count == len(added)
        beside = model(**kwargs)
    with torch.no_grad():
        assert tiny.relative(beside, merged(**kwargs)) < 1e-5
        assert tiny.relative(model(**kwargs), merged(**kwargs)) > 1e-3


def diffusers_lora(prefix: str, alphas: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random factors for every layer that LoRAs of diffusers commonly have, unlike in rank."""
    model = tiny.diffusers_transformer()
    file = {}
    for i, (name, layer) in enumerate(model.named_modules()):
        if isinstance(layer, torch.nn.Linear) and i % 3:  # some members of fused layers are missing
            down, up = pair((layer.out_features, layer.in_features), 2 + i % 5, seed=seed)
            file |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
            if alphas:
                file[f"{prefix}{name}.alpha"] = torch.tensor(float(1 + i % 4))
    return file


@pytest.mark.parametrize("dora", [False, True])
def test_a_lora_of_diffusers_does_what_it_does_there(dora, tmp_path):
    """Against diffusers' own transformer with the adapter loaded by peft."""
    theirs = tiny.diffusers_transformer().requires_grad_(False)
    file = diffusers_lora("transformer.")
    ranks = {k.removeprefix("transformer.").removesuffix(".lora_A.weight"): len(v)
             for k, v in file.items() if "lora_A" in k}  # fmt: skip
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=list(ranks), rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks), use_dora=dora,
    )  # fmt: skip
    kwargs = tiny.inputs()
    path = tiny.save(theirs.state_dict(), tmp_path / "model.safetensors")
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
        expected = theirs(**tiny.to_diffusers(kwargs), return_dict=False)[0]
        plain = ours(**kwargs)
        with lora_applied(ours, [(lora, 1.0)]):
            assert tiny.relative(ours(**kwargs), expected) < 1e-5
        assert torch.equal(ours(**kwargs), plain)
        merged = merge_loras(copy.deepcopy(ours), [(lora, 1.0)])
        assert tiny.relative(merged(**kwargs), expected) < 1e-5


@pytest.mark.parametrize(
    "rename",
    [
        lambda k: "base_model.model." + k.replace(".weight", ".default.weight"),
        lambda k: "transformer." + k.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        lambda k: "transformer." + k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
        lambda k: "lora_transformer_" + k.split(".lora_")[0].replace(".", "_")
        + (".lora_down.weight" if "lora_A" in k else ".lora_up.weight"),
        lambda k: "transformer." + k,
    ],
)  # fmt: skip
def test_other_spellings_of_diffusers_names_are_the_same(rename, tmp_path):
    plain = diffusers_lora("")
    renamed = {rename(key): value for key, value in plain.items()}
    model = new_model()
    a = merge_loras(copy.deepcopy(model), [(write(plain, tmp_path), 1.0)])
    b = merge_loras(copy.deepcopy(model), [(write(renamed, tmp_path), 1.0)])
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


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
    made = difference(model, merge_loras(copy.deepcopy(model), [(write(file, tmp_path), 1.0)]))
    assert made.keys() == added.keys()
    assert all(tiny.relative(made[name], added[name]) < 1e-5 for name in added)


def test_columns_of_a_dora_are_stretched(tmp_path):
    """LyCORIS' DoRA may have a magnitude a column."""
    name, shape = "double_blocks.1.txt_mlp.2", (HIDDEN, 4 * HIDDEN)
    down, up = pair(shape, 4)
    magnitude = 0.5 + torch.rand(1, shape[1])
    key = f"lora_unet_{name.replace('.', '_')}"
    file = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up,
            f"{key}.dora_scale": magnitude}  # fmt: skip
    model, lora = new_model(), write(file, tmp_path)
    own = model.get_submodule(name).weight
    wanted = own + up @ down
    wanted = wanted * magnitude / wanted.norm(dim=0, keepdim=True)
    merged = merge_loras(copy.deepcopy(model), [(lora, 1.0)])
    assert tiny.relative(merged.get_submodule(name).weight, wanted) < 1e-5
    kwargs = tiny.inputs()
    with torch.no_grad(), lora_applied(model, [(lora, 1.0)]):
        assert tiny.relative(model(**kwargs), merged(**kwargs)) < 1e-5


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


@pytest.mark.parametrize("precision", ["bf16", *sorted(FORMATS)])
def test_ten_loras_stream_to_the_same_bits_and_leave_none_changed(precision, tmp_path):
    model = quantize(new_model().bfloat16(), precision)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    loras = [write(diffusers_lora("transformer.", True, seed), tmp_path) for seed in range(8)]
    loras += [write(native_files(family)[0], tmp_path) for family in ("lokr", "loha")]
    stack = [(lora, 0.1 * (i + 1)) for i, lora in enumerate(loras)]
    kwargs = tiny.inputs()
    with torch.no_grad():
        plain = model(**kwargs)
        with lora_applied(model, stack):
            expected = model(**kwargs)
            assert tiny.relative(expected, plain) > 1e-3
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


def test_ten_loras_add_up(tmp_path):
    model = new_model()
    stack = [
        (write(diffusers_lora("transformer.", seed=seed), tmp_path), 0.1 * (seed + 1))
        for seed in range(10)
    ]
    kwargs = tiny.inputs()
    merged = merge_loras(copy.deepcopy(model), stack)
    with torch.no_grad(), lora_applied(model, stack):
        assert tiny.relative(model(**kwargs), merged(**kwargs)) < 1e-5


def test_another_strength_compiles_nothing_again_and_is_the_same_as_anew(tmp_path):
    torch._dynamo.reset()
    compiled_forward.cache_clear()
    model = new_model()
    lora = write(diffusers_lora("transformer."), tmp_path)
    kwargs, counter = tiny.inputs(), CompileCounter()
    compile_blocks(model, counter)
    with torch.no_grad():
        with lora_applied(model, [(lora, 0.5)]):
            model(**kwargs)
        frames = counter.frame_count
        with lora_applied(model, [(lora, 1.3)]):
            changed = model(**kwargs)
        assert counter.frame_count == frames
        merged = merge_loras(compile_blocks(copy.deepcopy(model), ""), [(lora, 1.3)])
        assert tiny.relative(changed, merged(**kwargs)) < 1e-5
    compile_blocks(model, "")
    torch._dynamo.reset()


def test_a_run_foresees_modulations_with_their_loras(tmp_path):
    """Modulations are computed ahead, of the layers as they are with a LoRA beside them."""
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
    assert tiny.relative(merged, applied) < 1e-3


def test_what_does_not_fit_is_said(tmp_path):
    model = new_model()
    down, up = pair((64, 64), 2)
    lora = write({"unet.down_blocks.0.attn.to_q.lora_A.weight": down,
                  "unet.down_blocks.0.attn.to_q.lora_B.weight": up}, tmp_path)  # fmt: skip
    found = match_lora(lora, model)
    assert not found.matched and len(found.unmatched) == 2
    with pytest.raises(ValueError, match=r"nothing of it fits .* found unet\.down_b.*expected"):
        refuse_unmatched(lora, [found])
    with pytest.raises(ValueError, match="nothing of it fits"):
        merge_loras(model, [(lora, 1.0)])
    name = "diffusion_model.double_blocks.0.img_attn.qkv"
    lora = write({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path)
    found = match_lora(lora, model)
    said = rf"made for a layer of \(64, 64\), this one is \({3 * HIDDEN}, {HIDDEN}\)"
    with pytest.raises(ValueError, match=said):
        refuse_unmatched(lora, [found])
    lora = write({f"{name}.lora_A.weight": down}, tmp_path)
    assert "lacks up" in str(match_lora(lora, model))
    with pytest.raises(CheckpointError, match="expected a LoRA"):
        write({"model.weight": down}, tmp_path)
    with pytest.raises(ValueError, match="load it in bf16 to merge"):
        merge_loras(quantize(model, "int8"), [(lora, 1.0)])
