"""Every form of a LoRA on every kind of layer: with magnitudes, a bias, and halves swapped."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from flux_core.lora import lora_applied, match_lora, merge_loras
from tests import tiny_models
from tests.flux_core.lora.lora_files import HIDDEN, new_model, random, write

#: A file's name of a layer: ours, its first row, its rows, its inputs, whether halves are swapped.
LAYERS = {
    "double_blocks.0.img_attn.qkv": (
        "double_blocks.0.img_attn.qkv",
        0,
        3 * HIDDEN,
        HIDDEN,
        False,
    ),
    "transformer_blocks.1.attn.add_k_proj": (
        "double_blocks.1.txt_attn.qkv",
        HIDDEN,
        HIDDEN,
        HIDDEN,
        False,
    ),
    "single_transformer_blocks.2.proj_mlp": (
        "single_blocks.2.linear1",
        3 * HIDDEN,
        4 * HIDDEN,
        HIDDEN,
        False,
    ),
    "norm_out.linear": ("final_layer.adaLN_modulation.1", 0, 2 * HIDDEN, HIDDEN, True),
}


def low_rank(rows: int, columns: int, rank: int = 4):
    down, up = random(rank, columns, seed=1), random(rows, rank, seed=2)
    kinds = {"lora_A.weight": down, "lora_B.weight": up, "alpha": torch.tensor(2.0)}
    return kinds, up @ down * 2.0 / rank


def loha(rows: int, columns: int, rank: int = 3):
    a, b = random(rows, rank, seed=3), random(rank, columns, seed=4)
    c, d = random(rows, rank, seed=5), random(rank, columns, seed=6)
    kinds = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d}
    return kinds | {"alpha": torch.tensor(6.0)}, (a @ b) * (c @ d) * 6.0 / rank


def large_loha(rows: int, columns: int):
    return loha(rows, columns, 20)


def lokr(rows: int, columns: int):
    a, b = random(8, 4, seed=7), random(rows // 8, columns // 4, seed=8)
    return {"lokr_w1": a, "lokr_w2": b, "alpha": torch.tensor(9.0)}, torch.kron(a, b)


def low_rank_lokr(rows: int, columns: int):
    a, c, d = random(8, 4, seed=9), random(rows // 8, 2, seed=10), random(2, columns // 4, seed=11)
    kinds = {"lokr_w1": a, "lokr_w2_a": c, "lokr_w2_b": d, "alpha": torch.tensor(4.0)}
    return kinds, torch.kron(a, c @ d) * 2.0


def dense(rows: int, columns: int):
    diff = random(rows, columns, seed=12)
    return {"diff": diff}, diff


FORMS = (low_rank, loha, large_loha, lokr, low_rank_lokr, dense)


def turned(x: torch.Tensor, swap: bool) -> torch.Tensor:
    return torch.cat(x.chunk(2)[::-1]) if swap else x


@pytest.mark.parametrize("magnitude", [None, "rows", "flat rows", "columns"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_form_goes_through_magnitude_bias_and_swap(name, magnitude, tmp_path):
    ours, start, rows, columns, swap = LAYERS[name]
    base = new_model()
    weight = base.get_parameter(f"{ours}.weight")[start : start + rows]
    own_bias = base.get_parameter(f"{ours}.bias")[start : start + rows]
    for form, with_bias in itertools.product(FORMS, (False, True)):
        kinds, added = form(rows, columns)
        wanted = turned(weight, swap) + added  # as the file's library has the layer
        if magnitude is not None:
            axis = 0 if magnitude == "columns" else 1
            sizes = 1 + random(wanted.shape[1 - axis], seed=13).abs()
            stands = sizes[:, None] if axis else sizes[None]
            kinds["dora_scale"] = sizes if magnitude == "flat rows" else stands
            wanted = wanted * stands / wanted.norm(dim=axis, keepdim=True)
        bias = random(rows, seed=14)
        if with_bias:
            kinds["diff_b"] = bias
        lora = write({f"{name}.{kind}": t for kind, t in kinds.items()}, tmp_path)
        merged = merge_loras(copy.deepcopy(base), [(lora, 1.0)])
        got = merged.get_parameter(f"{ours}.weight")[start : start + rows]
        assert tiny_models.relative(got, turned(wanted, swap)) < 1e-5, form.__name__
        got_bias = merged.get_parameter(f"{ours}.bias")[start : start + rows]
        expected_bias = own_bias + turned(bias, swap) if with_bias else own_bias
        assert torch.allclose(got_bias, expected_bias, atol=1e-6), form.__name__
        x = random(5, columns, seed=15)
        with lora_applied(base, [(lora, 1.0)]):
            branched = base.get_submodule(ours)(x)
        assert tiny_models.relative(branched, merged.get_submodule(ours)(x)) < 1e-4, form.__name__


@pytest.mark.parametrize(
    "kinds, added",
    [
        ({"lora_A.weight": random(HIDDEN), "lora_B.weight": random(HIDDEN, 1)}, True),
        ({"lora_A.weight": random(1, HIDDEN), "lora_B.weight": random(HIDDEN)}, True),
        ({"lora_A.weight": random(2 * HIDDEN), "lora_B.weight": random(2 * HIDDEN)}, True),
        (
            {"lora_A.weight": random(3, HIDDEN, 1, 1), "lora_B.weight": random(HIDDEN, 3, 1, 1)},
            True,
        ),
        ({"lora_A.weight": torch.zeros(0, HIDDEN), "lora_B.weight": torch.zeros(HIDDEN, 0)}, False),
        ({"lora_A": random(2, HIDDEN), "lora_B": random(HIDDEN, 2)}, True),
    ],
)
def test_flat_and_empty_factors_are_what_they_can_only_be(kinds, added, tmp_path):
    name = "transformer_blocks.0.attn.to_q"
    base = new_model()
    lora = write({f"{name}.{kind}": t for kind, t in kinds.items()}, tmp_path)
    match = match_lora(lora, base)
    assert not match.unmatched
    down, up = (t.float() for t in kinds.values())
    wanted = up.reshape(HIDDEN, -1) @ down.reshape(-1, HIDDEN) if added else torch.zeros(())
    merged = merge_loras(copy.deepcopy(base), [(lora, 1.0)])
    key = "double_blocks.0.img_attn.qkv.weight"
    got = merged.get_parameter(key)[:HIDDEN] - base.get_parameter(key)[:HIDDEN]
    assert torch.allclose(got, wanted.expand_as(got), atol=1e-5)
    with lora_applied(base, [(lora, 1.0)]):
        base.get_submodule("double_blocks.0.img_attn.qkv")(random(2, HIDDEN))


@pytest.mark.parametrize(
    "more, message",
    [
        ({"oft_blocks": random(4, 8, 8)}, "OFT"),
        ({"oft_R.weight": random(4, 8)}, "OFT"),
        ({"boft_R": random(4, 8)}, "BOFT"),
        ({"lora_mid.weight": random(4, 4, 3, 3)}, "convolution"),
        ({"lora_A.bias": random(4)}, "inner side"),
        ({"new_kind": random(4)}, "new_kind"),
        ({"lora_down.scale_weight": random(1)}, "scale_weight"),
        ({"magnitude": random(7)}, "7 magnitudes"),
        ({"lora_B.bias": random(7)}, "bias of 7"),
    ],
)
def test_a_layer_is_refused_whole_where_a_part_of_it_is_not_read(more, message, tmp_path):
    name = "transformer.transformer_blocks.0.attn.to_q"
    other = "transformer.transformer_blocks.1.attn.to_q"
    kinds = {"lora_A.weight": random(4, HIDDEN), "lora_B.weight": random(HIDDEN, 4)}
    file = {f"{n}.{kind}": t for n in (name, other) for kind, t in kinds.items()}
    lora = write(file | {f"{name}.{kind}": t for kind, t in more.items()}, tmp_path)
    match = match_lora(lora, new_model())
    assert set(match.deltas) == {"double_blocks.1.img_attn.qkv"}
    assert message in str(match) and len(match.unmatched) == 3


def test_adapters_that_are_no_loras_are_refused_by_name(tmp_path):
    layer = "oft_unet_double_blocks_0_img_attn_qkv"
    lora = write(
        {f"{layer}.oft_blocks": random(4, 8, 8), f"{layer}.alpha": torch.ones(())}, tmp_path
    )
    with pytest.raises(ValueError, match="has OFT, which is not read"):
        merge_loras(new_model(), [(lora, 1.0)])


def test_a_large_loha_is_held_no_wider_than_dense(tmp_path):
    rows, columns = HIDDEN, HIDDEN
    kinds, _ = loha(rows, columns, rank=64)
    name = "transformer_blocks.0.attn.to_q"
    lora = write({f"{name}.{kind}": t for kind, t in kinds.items()}, tmp_path)
    (delta,) = match_lora(lora, new_model()).deltas["double_blocks.0.img_attn.qkv"]
    held = sum(t.numel() for t in (delta.up, delta.down, delta.diff) if t is not None)
    assert held <= rows * columns and math.isfinite(held)
