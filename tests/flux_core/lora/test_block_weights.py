"""A LoRA's weights a block: their grammar, and that they are a file with scaled blocks."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from flux_core import Conditioning
from flux_core.lora import BlockWeights, Lora, LoraUse, lora_applied, lora_uses, merge_loras
from flux_core.lora.apply import branches_for
from flux_core.lora.block_weights import PRESETS, BlockCounts
from flux_core.offload.placement import placement_of
from flux_core.sampling.run import DrawRequest
from tests import tiny_models
from tests.flux_core.lora.lora_files import new_model
from tests.flux_core.lora.lora_kinds import every_kind

DEV = BlockCounts(19, 38)
TINY = BlockCounts(3, 5)


def weights_of(text: str, counts: BlockCounts = DEV) -> dict[str, float]:
    """What a text makes of every block and of some layers that are in none."""
    weights = BlockWeights.parse(text)
    weights.check(counts)
    names = [f"double_blocks.{i}.img_attn.qkv" for i in range(counts.double)]
    names += [f"single_blocks.{i}.linear1" for i in range(counts.single)]
    names += ["img_in", "final_layer.linear"]
    return {name: weights.weight(name, "transformer", counts) for name in names}


class TestGrammar:
    def test_rules_name_ranges_and_what_is_left(self):
        weighted = weights_of("double 0-9: 1, single 10-37: 0.5, else 0")
        for i in range(19):
            assert weighted[f"double_blocks.{i}.img_attn.qkv"] == (1 if i <= 9 else 0)
        for i in range(38):
            assert weighted[f"single_blocks.{i}.linear1"] == (0.5 if i >= 10 else 0)
        assert weighted["img_in"] == weighted["final_layer.linear"] == 0

    def test_what_no_rule_names_counts_whole_and_later_rules_win(self):
        weighted = weights_of("double: 0.5\nDOUBLE 3 = -2; outside: 0.25")
        assert weighted["double_blocks.2.img_attn.qkv"] == 0.5
        assert weighted["double_blocks.3.img_attn.qkv"] == -2
        assert weighted["single_blocks.3.linear1"] == 1
        assert weighted["img_in"] == 0.25

    @pytest.mark.parametrize("before", [0, 1])
    def test_a_list_has_a_number_a_block(self, before):
        numbers = [i / 8 for i in range(57 + before)]
        weighted = weights_of(",".join(map(str, numbers)))
        assert list(weighted.values())[:57] == numbers[before:]
        assert weighted["img_in"] == (0 if before else 1)
        assert BlockWeights.of(numbers) == BlockWeights.parse(" , ".join(map(str, numbers)))

    def test_presets_fit_flux_and_differ(self):
        weighted = [tuple(weights_of(name.upper() + " ").values()) for name in PRESETS]
        assert len(set(weighted)) == len(PRESETS)
        assert all(set(weights) <= {0.0, 1.0} and any(weights) for weights in weighted)
        assert all(weights_of("all").values())

    def test_encoders_have_rules_of_their_own(self):
        weights = BlockWeights.parse("else: 0, text: 0.5, t5: 0.25")
        assert weights.weight("layers.0", "clip_l", DEV) == 0.5
        assert weights.weight("block.0", "t5", DEV) == 0.25
        assert BlockWeights.parse("else: 0").weight("block.0", "t5", DEV) == 1
        assert BlockWeights.parse("0.5, " * 57).weight("block.0", "t5", DEV) == 1

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "are empty"),
            ("dubble 3: 1", "'dubble 3: 1' is no rule, expected .* double, single, outside"),
            ("double 3", "'double 3' is no rule"),
            ("double 3: much", "has the weight 'much', expected a number"),
            ("double 5-3: 1", "begins after its end"),
            ("outside 3: 1", "numbers what has no blocks"),
            ("double 3: nan", "double 3 is nan, expected a number"),
            ("double: 1e9", "double is 1000000000.0, expected -1000 to 1000"),
            ("1, inf, 3", "number 1 is inf"),
            ("1, 2, double: 1", "'1' is no rule"),
            ("1," * 2000, "more than 1000"),
            ("double -1: 1", "is no rule"),
        ],
    )
    def test_what_is_wrong_is_named(self, text, message):
        with pytest.raises(ValueError, match=message) as raised:
            BlockWeights.parse(text)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        "text, message",
        [
            ("single 5: 1", "single 5 is past this model's last one, expected single 0-4"),
            ("double 1-3: 1", "double 1-3 is past this model's last one, expected double 0-2"),
            ("1, 1", "are 2 numbers, expected 8 for this model's 3 double and 5 single"),
            ("style", "double 10-18 is past"),
        ],
    )
    def test_another_models_blocks_are_refused_before_anything_runs(self, text, message):
        model, use = new_model(), LoraUse(every_kind(new_model()), blocks=text)
        with pytest.raises(ValueError, match=message):
            BlockWeights.parse(text).check(TINY)
        with pytest.raises(ValueError, match=message), lora_applied(model, [use]):
            pass
        with pytest.raises(ValueError, match=message):
            merge_loras(model, [use])
        with pytest.raises(ValueError, match=message):
            DrawRequest(model, blank_prompt(), torch.zeros(1, 16, 4, 6), loras=[use])

    @pytest.mark.parametrize("value", [3, object(), {"double": 1}])
    def test_what_is_no_weights_is_refused(self, value):
        with pytest.raises(ValueError, match="expected a text or numbers"):
            LoraUse(every_kind(new_model()), blocks=value)


def blank_prompt() -> Conditioning:
    return Conditioning(torch.zeros(1, 4, tiny_models.CONTEXT), torch.zeros(1, tiny_models.POOLED))


def scaled_by_hand(lora: Lora, model: torch.nn.Module, weights: BlockWeights) -> Lora:
    """The file again, what it adds scaled by each layer's weight; powers of two round nothing."""
    layers = {}
    for (part, name), kinds in lora.layers.items():
        weight = weights.weight(name, part, BlockCounts.of(model))
        scaled = dict(kinds)
        for kind in ("up", "hada_w1_a", "lokr_w1", "diff", "bias"):
            if kind in scaled:
                scaled[kind] = scaled[kind] * weight
        layers[part, name] = scaled
    return replace(lora, layers=layers)


class TestWhatCounts:
    TEXT = "double 0: 0.5, double 1-2: 2, single 0-2: 0, single 3: -1, single: 0.25, outside: 4"

    def test_weights_equal_a_file_with_scaled_blocks_to_the_bit(self):
        """All that a file can scale: low rank, Hadamard, Kronecker, dense, biases."""
        model = new_model()
        lora = every_kind(model, dora=False, norms=False)
        weights = BlockWeights.parse(self.TEXT)
        by_hand = scaled_by_hand(lora, model, weights)
        kwargs = tiny_models.inputs()
        with torch.no_grad():
            with lora_applied(model, [(by_hand, 0.5)]):
                expected = model(**kwargs)
            with lora_applied(model, [LoraUse(lora, 0.5, weights)]):
                assert torch.equal(model(**kwargs), expected)
            with lora_applied(model, [(lora, 0.5)]):
                assert tiny_models.relative(model(**kwargs), expected) > 1e-3

    def test_every_kind_counts_as_merged(self):
        """DoRA's gains and norms too, which no file can scale."""
        model, weights = new_model(), BlockWeights.parse(self.TEXT)
        stack = [
            LoraUse(every_kind(model), 0.3, weights),
            (every_kind(model, seed=50), 0.2),
            LoraUse(every_kind(model, seed=90), 0.1, "double: 0, else: 1"),
        ]
        kwargs = tiny_models.inputs()
        merged = merge_loras(copy.deepcopy(model), stack)
        alike = [(use.lora, use.strength) for use in lora_uses(stack)]
        whole = merge_loras(copy.deepcopy(model), alike)
        with torch.no_grad(), lora_applied(model, stack):
            expected = merged(**kwargs)
            assert tiny_models.relative(model(**kwargs), expected) < 1e-5
            assert tiny_models.relative(whole(**kwargs), expected) > 1e-3
            here = model(**kwargs)
            with placement_of(model, torch.device("cpu")).running({1, 4}, 2):
                streamed = model(**kwargs)
            assert torch.equal(streamed, here)

    def test_other_weights_change_numbers_alone(self):
        model, lora = new_model(), every_kind(new_model())

        def branches():
            return branches_for(model, [lora], lambda: pytest.fail("made anew"))

        with lora_applied(model, [(lora, 1.0)]):
            before = {name: id(branch) for name, branch in branches().branches.items()}
            numbers = {n: t.clone() for n, t in model.named_buffers() if n.endswith(".scale")}
        for blocks in ("double", "else: 0.5", None):
            with lora_applied(model, [LoraUse(lora, 1.0, blocks)]):
                after = {name: id(branch) for name, branch in branches().branches.items()}
                assert after == before
                same = [torch.equal(t, dict(model.named_buffers())[n]) for n, t in numbers.items()]
                assert all(same) == (blocks is None)
