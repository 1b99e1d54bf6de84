"""Where a LoRA's strength is message: beside its tensors, in its header, in a file beside it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from flux_core import CheckpointError
from flux_core.lora import load_lora, match_lora
from flux_core.lora.match import lora_report
from tests.flux_core.lora.lora_files import HIDDEN, new_model, random

LAYER = "transformer_blocks.0.attn.to_q"
RANK = 4


def factor(tmp_path, *, alpha=None, metadata=None, config=None, prefix="transformer.") -> float:
    """By how much a LoRA's product counts, for what is message of it in each place."""
    down, up = random(RANK, HIDDEN), random(HIDDEN, RANK)
    tensors = {f"{prefix}{LAYER}.lora_A.weight": down, f"{prefix}{LAYER}.lora_B.weight": up}
    if alpha is not None:
        tensors[f"{prefix}{LAYER}.alpha"] = torch.tensor(alpha)
    path = tmp_path / "adapter_model.safetensors"
    save_file(tensors, path, metadata=metadata)
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8-sig")
    lora = load_lora(path)
    (delta,) = match_lora(lora, new_model()).deltas["double_blocks.0.img_attn.qkv"]
    weight = delta.weight()
    assert weight is not None
    return float((weight / (up @ down)).median())


def header(**message) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps(message)}


@pytest.mark.parametrize(
    "places, expected",
    [
        ({}, 1.0),
        ({"alpha": 8.0}, 2.0),
        ({"metadata": header(**{"transformer.lora_alpha": 16})}, 4.0),
        ({"metadata": header(lora_alpha=16)}, 4.0),
        ({"metadata": header(**{"text_encoder.lora_alpha": 16})}, 1.0),
        ({"metadata": header(**{"transformer.alpha_pattern": {LAYER: 2}})}, 0.5),
        ({"metadata": header(**{"transformer.alpha_pattern": {"attn.to_q": 2}})}, 0.5),
        ({"metadata": header(lora_alpha=16, use_rslora=True)}, 8.0),
        ({"metadata": {"lora_alpha": "16"}}, 4.0),
        ({"metadata": {f"transformer.{LAYER}.alpha": "12"}}, 3.0),
        ({"metadata": {"ss_network_alpha": "16", "ss_network_dim": "4"}}, 1.0),  # kohya's own note
        ({"config": {"r": RANK, "lora_alpha": 16}}, 4.0),
        ({"config": {"r": 8, "lora_alpha": 2, "alpha_pattern": {".*to_q": 20}}}, 5.0),
        ({"config": {"alpha_pattern": {r"^.*\.(to_q|to_k)$": 20, "to_q": 4}}}, 5.0),
        ({"config": {"alpha_pattern": {"to_q": 4, LAYER: 8}}}, 1.0),
        ({"config": {"alpha_pattern": {"to_k": 8, ".*": 4, "to_q": 8}}}, 1.0),
        ({"config": {"alpha_pattern": {r"transformer_blocks\.\d+\.attn\.to_[qkv]": 20}}}, 5.0),
        ({"config": {"lora_alpha": 16, "alpha_pattern": {"to_q_proj": 3, "o_q": 3}}}, 4.0),
        ({"metadata": {"lora_alpha": "None", "network.alpha": "auto"}}, 1.0),
        ({"config": {"lora_alpha": 16, "use_rslora": True}}, 8.0),
        ({"alpha": 8.0, "metadata": header(lora_alpha=16), "config": {"lora_alpha": 1}}, 2.0),
        ({"metadata": header(lora_alpha=16), "config": {"lora_alpha": 1}}, 4.0),
    ],
)
def test_the_nearest_alpha_counts(places, expected, tmp_path):
    assert factor(tmp_path, **places) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "places",
    [
        {"metadata": header(lora_alpha="much")},
        {"metadata": header(lora_alpha=True)},
        {"metadata": header(lora_alpha=[1])},
        {"metadata": {"lora_adapter_metadata": "{"}},
        {"metadata": {"lora_adapter_metadata": "[1]"}},
        {"metadata": {"lora_adapter_metadata": '{"lora_alpha": NaN}'}},
        {"metadata": {"lora_alpha": "inf"}},
        {"metadata": {f"transformer.{LAYER}.alpha": "nan"}},
        {"config": ["r"]},
        {"config": {"lora_alpha": {}}},
        {"config": {"alpha_pattern": 3}},
        {"config": {"alpha_pattern": {"(a+)+$": 3}}},
        {"config": {"alpha_pattern": {"(a|a)*b": 3}}},
        {"config": {"alpha_pattern": {"(?:.*){9}b": 3}}},
        {"config": {"alpha_pattern": {".*a.*b.*c.*d": 3}}},
        {"config": {"alpha_pattern": {"a?" * 66 + "a" * 60: 3}}},
        {"config": {"r": -4}},
        {"config": {"r": 1e300}},
        {"config": {"r": 0}},
        {"config": {"rank_pattern": {"to_q": 1e-300}}},
        {"config": {"alpha_pattern": {"(": 3}}},
        {"config": {"alpha_pattern": {"a" * 300 + ".?[": 3}}},
        {"config": {"alpha_pattern": {f"a{i}.?b": 3 for i in range(101)}}},
        {"config": {"r": "four"}},
        {"config": {"rank_pattern": {"(a+)+$": 3}}},
        {"config": {"peft_type": "OFT"}},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
    ],
)
def test_alphas_that_are_no_numbers_are_refused(places, tmp_path):
    with pytest.raises(CheckpointError, match="adapter"):
        factor(tmp_path, **places)


class TestWholeFactors:
    """Of LoKr, which have no rank: LyCORIS adds them as they are, PEFT scales them by its own."""

    def change(self, folder, config: dict | None = None, **more: torch.Tensor) -> float:
        """How often the product of the factors is added."""
        one, two = random(8, 8), random(HIDDEN // 8, HIDDEN // 8)
        tensors = {f"{LAYER}.lokr_w1": one, f"{LAYER}.lokr_w2": two}
        save_file(tensors | more, folder / "adapter_model.safetensors")
        if config is not None:
            (folder / "adapter_config.json").write_text(json.dumps(config))
        matched = match_lora(load_lora(folder / "adapter_model.safetensors"), new_model())
        (delta,) = matched.deltas["double_blocks.0.img_attn.qkv"]
        return float((delta.weight() / torch.kron(one, two)).median())  # type: ignore[operator]

    @pytest.mark.parametrize("alpha", [1.0, 100_000.0, float("inf")])
    def test_of_lycoris_mean_themselves_whatever_their_alpha(self, alpha, tmp_path):
        tensor = torch.tensor(alpha).half()  # where "all of the rank" is infinite
        assert self.change(tmp_path, **{f"{LAYER}.alpha": tensor}) == pytest.approx(1)

    @pytest.mark.parametrize(
        "config, expected",
        [
            ({"r": 16, "alpha": 8}, 0.5),
            ({"r": 16, "alpha": 8, "rank_pattern": {"to_q": 4}}, 2.0),
            ({"r": 16, "alpha": 8, "alpha_pattern": {".*to_q": 16}}, 1.0),
            ({"alpha": 8}, 1.0),
        ],
    )
    def test_of_peft_are_scaled_by_the_rank_that_it_says(self, config, expected, tmp_path):
        config |= {"peft_type": "LOKR"}
        assert self.change(tmp_path, config) == pytest.approx(expected)

    def test_an_alpha_beside_them_is_of_lycoris(self, tmp_path):
        config = {"peft_type": "LOKR", "r": 16, "alpha": 8}
        alpha = {f"{LAYER}.alpha": torch.tensor(1e10)}
        assert self.change(tmp_path, config, **alpha) == pytest.approx(1)


@pytest.mark.parametrize("kind, expected", [("diff_b", 1.0), ("lora_B.bias", 2.0)])
def test_a_bias_of_the_factors_is_scaled_as_they_are(kind, expected, tmp_path):
    down, up = random(RANK, HIDDEN), random(HIDDEN, RANK)
    tensors = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    tensors |= {f"{LAYER}.{kind}": torch.ones(HIDDEN)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = {"r": RANK, "lora_alpha": 2 * RANK, "lora_bias": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    matched = match_lora(load_lora(tmp_path / "adapter_model.safetensors"), new_model())
    (delta,) = matched.deltas["double_blocks.0.img_attn.qkv"]
    assert torch.equal(delta.bias, torch.full((HIDDEN,), expected))


@pytest.mark.parametrize("key", ["x" + ".oft_r" * 10_000 + "!", "a." * 100_000, "b" * 600])
def test_a_key_longer_than_any_layers_is_of_none(key, tmp_path):
    down, up = random(RANK, HIDDEN), random(HIDDEN, RANK)
    tensors = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    save_file(tensors | {key: torch.zeros(1)}, tmp_path / "one.safetensors")
    assert load_lora(tmp_path / "one.safetensors").unknown == (key,)


def test_a_configuration_is_of_its_own_file_alone(tmp_path):
    down, up = random(RANK, HIDDEN), random(HIDDEN, RANK)
    tensors = {f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}
    for name in ("one", "two"):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 16}')
    lora = load_lora(tmp_path / "one.safetensors")
    assert lora.alphas == {"not given, so the rank": 1}
    assert "1 not given, so the rank" in lora_report(lora, [match_lora(lora, new_model())])


@pytest.mark.parametrize("kind", ["lora_A.weight", "lora_B.weight", "dora_scale", "diff_b"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e5m2])
def test_numbers_that_are_not_finite_name_their_tensor(kind, value, dtype, tmp_path):
    tensors = {
        "lora_A.weight": random(RANK, HIDDEN),
        "lora_B.weight": random(HIDDEN, RANK),
        "dora_scale": random(HIDDEN, 1),
        "diff_b": random(HIDDEN),
    }
    tensors[kind].view(-1)[5] = value
    file = {f"{LAYER}.{name}": t.to(dtype) for name, t in tensors.items()}
    save_file(file, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=rf"{LAYER}\.{kind}' holds 1 values"):
        load_lora(tmp_path / "x.safetensors")
