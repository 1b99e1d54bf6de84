"""LoRAs with schedules: steps by hand, and all policies the same bits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flux_core import (
    FluxTransformer,
    quantize,
)
from flux_core.lora import Lora, LoraUse, lora_applied
from flux_core.lora.schedule import StrengthSchedule
from flux_core.offload import OffloadRunner
from flux_core.sampling.latents import (
    destandardise,
    image_ids,
    pack,
    standardise,
    text_ids,
    unpack,
)
from flux_core.sampling.lora_factors import share_at, step_factor
from flux_core.sampling.prepared import sigma_at
from flux_core.sampling.run import draw
from flux_core.sampling.samplers import SAMPLERS, step_noise
from flux_core.sampling.sigmas import SigmaTable
from tests import tiny_models
from tests.flux_core.lora.lora_files import new_model
from tests.flux_core.lora.lora_kinds import every_kind
from tests.flux_core.sampling.lora_runs import (
    CPU,
    POLICIES,
    drawn,
    prompt,
    request,
    stack_of_all,
)


class TestShares:
    @pytest.mark.parametrize("mu", [0.0, 0.5, 1.15, 3.0])
    def test_shares_are_those_of_spans(self, mu):
        table = SigmaTable(mu)
        shares = [0.0, 0.01, 0.1, 0.25, 1 / 3, 0.5, 0.8, 0.999, 1.0]
        for share in shares:
            sigma = sigma_at(table, share)
            assert share_at(table, sigma) == pytest.approx(share, abs=1e-6)
            assert share_at(table, sigma, shares) == share
        assert share_at(table, 0.0) == 1 and share_at(table, 1.7) == 0

    def test_a_step_exactly_at_a_point_has_what_holds_from_there(self):
        table = SigmaTable(1.15)
        use = LoraUse(every_kind(new_model()), schedule="step 0:1, 0.3:0, 0.7:2")
        assert step_factor(use, table, sigma_at(table, 0.3)) == 0
        assert step_factor(use, table, sigma_at(table, 0.7)) == 2
        assert step_factor(use, table, sigma_at(table, 0.2999)) == 1


def by_hand(
    model: FluxTransformer, lora: Lora, schedule: str, strength: float, sampler: str
) -> tuple[Tensor, int]:
    """The run with a constant strength of its own at every call, and how many calls there were."""
    plain = request(model, sampler=sampler)
    noise, sigmas, table = plain.noise_schedule
    points, text, calls = StrengthSchedule.parse(schedule), prompt(), 0

    @torch.no_grad()
    def call(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        time = 1 / (1 + math.exp(table.mu) * (1 / float(sigma) - 1))
        with lora_applied(model, [(lora, strength * points.at(1 - time))]):
            inputs = pack(x), image_ids(4, 6), text.context, text_ids(5), sigma[None]
            velocity = model(*inputs, text.pooled, torch.tensor([3.5]))
        return x - sigma * unpack(velocity.float(), 4, 6)

    start = standardise(torch.zeros(1, 16, 4, 6), plain.vae)
    x = sigmas[0] * noise + (1 - sigmas[0]) * start
    x = SAMPLERS[sampler](call, x, sigmas, step_noise(x, 3), lambda *_: None)
    return destandardise(x, plain.vae), calls


class TestScheduledRuns:
    """Layers of every kind have the LoRA, modulations and embedders of vectors among them."""

    @pytest.mark.parametrize("sampler", sorted(SAMPLERS))
    def test_a_schedule_is_each_step_with_the_strength_of_its_own(self, sampler):
        model = new_model()
        lora = every_kind(model)
        for schedule in ("0:0.25, 1:1", "step 0:1, 0.3:0.2"):
            expected, calls = by_hand(model, lora, schedule, 0.4, sampler)
            use = LoraUse(lora, 0.4, schedule=schedule)
            latents = drawn(request(model, [use], sampler=sampler))
            assert tiny_models.relative(latents, expected) < 1e-5
            assert calls == (7 if sampler == "heun" else 4)
            constant = drawn(request(model, [(lora, 0.4)], sampler=sampler))
            assert tiny_models.relative(constant, expected) > 1e-3

    @pytest.mark.parametrize(
        "precision, policies", [("bf16", POLICIES[1:]), ("int8", POLICIES[2:3])]
    )
    def test_all_policies_draw_the_same_bits(self, precision, policies):
        model = quantize(new_model().bfloat16(), precision)
        stack = stack_of_all(new_model())
        options = {"size": (2, 16, 4, 6), "cfg": 2.0, "negative": prompt(9, text=3), "steps": 3}
        state = {k: v.clone() for k, v in model.state_dict().items()}
        plain = drawn(request(model, **options))
        expected = drawn(request(model, stack, **options))
        assert not torch.equal(expected, plain)
        for policy in policies:
            assert torch.equal(drawn(request(model, stack, **options), policy=policy), expected)
        assert torch.equal(drawn(request(model, **options), policy=policy), plain)
        after = model.state_dict()
        assert after.keys() == state.keys()
        assert all(same_bytes(after[k], v) for k, v in state.items())

    def test_requests_drawn_together_have_their_own_steps(self):
        model = new_model()
        stack = stack_of_all(model)
        asked = [request(model, stack, steps=steps, positive=prompt(steps)) for steps in (2, 3)]
        apart = [drawn(one) for one in asked]
        for policy in POLICIES[1:3]:
            together = draw(OffloadRunner(policy, CPU), asked)
            assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))
        other = replace(asked[1], loras=[replace(stack[0], schedule=None), *stack[1:]])
        with pytest.raises(ValueError, match="the same model, controls and LoRAs"):
            draw(OffloadRunner(None, CPU), [asked[0], other])

    def test_more_steps_than_are_computed_at_once(self, monkeypatch):
        model = new_model()
        stack = stack_of_all(model)
        expected = drawn(request(model, stack, steps=7))
        monkeypatch.setattr("flux_core.offload.modulations.WINDOW", 3)
        assert tiny_models.relative(drawn(request(model, stack, steps=7)), expected) < 1e-5

    def test_each_picture_of_a_batch_has_the_steps_of_all(self):
        """Modulations of several steps and pictures are computed in one product."""
        model = new_model()
        stack = stack_of_all(model)
        (alone,) = drawn(request(model, stack))
        both = drawn(request(model, stack, size=(2, 16, 4, 6), batch_index=[0, 0]))
        for latents in both:
            assert tiny_models.relative(latents, alone) < 1e-5

    def test_a_factor_that_never_changes_is_a_strength(self):
        model, lora = new_model(), every_kind(new_model())
        half = drawn(request(model, [(lora, 0.25)]))
        scheduled = drawn(request(model, [LoraUse(lora, 0.5, schedule="0:0.5")]))
        assert tiny_models.relative(scheduled, half) < 1e-5
        none = drawn(request(model, [LoraUse(lora, 0.5, schedule="0:0")]))
        assert torch.equal(none, drawn(request(model)))

    def test_weights_a_block_and_a_schedule_multiply(self):
        model, lora = new_model(), every_kind(new_model())
        text = "double: 0.5, single 0-2: 0, outside: 2"
        expected = drawn(request(model, [LoraUse(lora, 0.25, text)]))
        both = drawn(request(model, [LoraUse(lora, 0.5, text, "0:0.5")]))
        assert tiny_models.relative(both, expected) < 1e-5


def same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))
