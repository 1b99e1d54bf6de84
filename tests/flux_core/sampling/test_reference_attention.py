"""Drawing with references that attend to themselves: bits, budgets, memory, and what goes along."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flux_core import (
    Conditioning,
    Control,
    FluxControlNet,
    FluxTransformer,
    OffloadPolicy,
    quantize,
)
from flux_core.lora import load_lora
from flux_core.lora.apply import branches_for
from flux_core.models.side_tokens import Keep
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.offload.kept import KeptOnHost
from flux_core.offload.machine import Machine
from flux_core.sampling.conditioning import AttentionBias, Region
from flux_core.sampling.references import References
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw, sample
from flux_core.sampling.samplers import SAMPLERS
from tests import tiny_models

STEPS = 3


def on_host() -> KeptOnHost:
    return KeptOnHost(torch.device("cpu"), 0)


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer(tiny_models.TWO_OF_EACH).requires_grad_(False)


def latents(height: int, width: int, seed: int) -> Tensor:
    return torch.randn(1, 16, height, width, generator=torch.Generator().manual_seed(seed))


def prompt(seed: int, attention: str = "self", method: str = "offset", side: int = 4, **more):
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(1, 5, tiny_models.CONTEXT, generator=generator),
        torch.randn(1, tiny_models.POOLED, generator=generator),
        references=References((latents(side, 6, 1), latents(6, side, 2)), method, attention),
        **more,
    )


def asked(transformer, *, steps: int = STEPS, sampler: str = "euler", cfg: float = 2.0, **more):
    settings = SamplingSettings(steps=steps, cfg=cfg, sampler=sampler, seed=1)
    options = {"positive": prompt(1), "negative": prompt(2), "latents": torch.zeros(2, 16, 4, 6)}
    return DrawRequest(transformer, settings=settings, **(options | more))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_the_same_bits_from_what_is_kept(transformer, sampler):
    request = asked(transformer, sampler=sampler)
    kept = sample(request)
    assert torch.equal(kept, sample(request, keep=False))
    assert torch.equal(kept, sample(request, keep=on_host))
    joint = replace(request, positive=prompt(1, "joint"), negative=prompt(2, "joint"))
    assert tiny_models.relative(kept, sample(joint)) > 1e-3


@pytest.mark.parametrize("precision", ["fp8_scaled", "int8"])
@pytest.mark.parametrize("mode", ["none", "component", "stream"])
def test_every_policy_and_precision(mode, precision):
    model = quantize(
        tiny_models.flux_transformer(tiny_models.TWO_OF_EACH).requires_grad_(False), precision
    )
    request = asked(model, steps=2)
    expected = sample(request, keep=False)
    (result,) = draw(OffloadRunner(OffloadPolicy(mode), "cpu"), [request])
    assert torch.equal(result, expected)


def test_references_pass_through_the_blocks_once_a_prompt(transformer, monkeypatch):
    calls: list[int] = []
    module = "flux_core.models.blocks.own_attention"
    from flux_core.models.blocks import own_attention

    monkeypatch.setattr(module, lambda *args: calls.append(1) or own_attention(*args))
    blocks = len(transformer.offload_blocks())
    sample(asked(transformer))
    assert len(calls) == 2 * blocks
    sample(asked(transformer), keep=on_host)
    assert len(calls) == 4 * blocks
    sample(asked(transformer), keep=False)
    assert len(calls) == 4 * blocks + 2 * blocks * STEPS


def test_the_budget_decides_and_the_bits_stay(transformer, monkeypatch):
    request = asked(transformer)
    expected = sample(request)
    work = request.work
    waiting, recompute = work.on_host, work.recompute
    assert waiting is not None and recompute is not None
    assert recompute.activations < waiting.activations < work.activations
    runner = OffloadRunner(OffloadPolicy("none", separate_memory=True), "cpu")
    plan = runner.plan(request.modules, work)
    assert not plan.recompute and not plan.kept_on_host
    weights = plan.peak - work.activations
    monkeypatch.setattr("flux_core.offload.runner.UNKNOWN", Machine(1e18, 70e12))
    least = weights + waiting.activations
    for budget, place in (
        (plan.peak, "device"),
        (plan.peak - 1, "host"),
        (least, "host"),
        (least - 1, "nowhere"),
    ):
        policy = OffloadPolicy("none", separate_memory=True, vram_budget=budget)
        runner = OffloadRunner(policy, "cpu")
        chosen = runner.plan(request.modules, work)
        assert chosen.kept_on_host is (place == "host")
        assert chosen.recompute is (place == "nowhere")
        assert chosen.peak <= budget or place == "nowhere"
        assert torch.equal(draw(runner, [request])[0], expected)


def test_they_wait_on_the_host_only_where_it_has_room(transformer, monkeypatch):
    for memory, waits in ((10**12, True), (1000, False)):
        monkeypatch.setattr("flux_core.sampling.kept.host_bytes", lambda memory=memory: memory)
        work = asked(transformer).work
        assert (work.on_host is not None) is waits and work.recompute is not None


def test_a_slow_link_computes_again(transformer, monkeypatch):
    """What waits on the host is copied in every pass: the plan weighs that against computing."""
    work = asked(transformer).work
    assert work.on_host is not None and work.on_host.moved > 0
    policy = OffloadPolicy("none", separate_memory=True)
    peak = OffloadRunner(policy, "cpu").plan([transformer], work).peak
    small = replace(policy, vram_budget=peak - 1)
    for link, recomputes in ((1e18, False), (1.0, True)):
        monkeypatch.setattr("flux_core.offload.runner.UNKNOWN", Machine(link, 70e12))
        plan = OffloadRunner(small, "cpu").plan([transformer], work)
        assert plan.recompute is recomputes and plan.kept_on_host is not recomputes


@pytest.mark.parametrize(
    ("attention", "method", "keep"),
    [
        ("joint", "offset", True),
        ("joint", "index_timestep_zero", True),
        ("self", "offset", True),
        ("self", "offset", False),
    ],
)
def test_predicted_bytes_are_what_a_run_takes(transformer, attention, method, keep):
    positive = prompt(1, attention, method, side=80)
    request = asked(
        transformer,
        positive=positive,
        negative=prompt(2, attention, method, side=80),
        latents=torch.zeros(2, 16, 16, 16),
        steps=2,
    )
    sample(request, keep=keep)
    with LiveBytes() as counted:
        sample(request, keep=keep)
    work = request.work if keep or request.work.recompute is None else request.work.recompute
    assert abs(counted.peak - work.activations) < 0.05 * counted.peak


def test_what_waits_on_the_host_takes_two_buffers_a_prompt(transformer):
    """The bytes that a run takes beside those on the host are what was predicted."""
    request = asked(
        transformer,
        positive=prompt(1, side=80),
        negative=prompt(2, side=80),
        latents=torch.zeros(2, 16, 16, 16),
    )
    stores = []
    sizes = []

    def keep() -> KeptOnHost:
        stores.append(on_host())
        return stores[-1]

    def look(step: int, *_: object) -> None:
        if step == STEPS - 1:
            sizes.extend((sum(t.nbytes for t in s.host), s.size, s.bytes) for s in stores)

    sample(request, keep=keep)
    stores.clear()
    with LiveBytes() as counted:
        sample(request, "cpu", look, keep)
    assert len(stores) == 2 and all(len(store) == 0 for store in stores), "nothing stays"
    work = request.work.on_host
    assert work is not None
    (waiting, slots, copied), (other, *_) = sizes
    blocks = len(transformer.offload_blocks())
    assert slots == 2 * waiting // blocks
    assert work.moved <= waiting <= 1.01 * work.moved
    # the first block of a run once, and with each block's turn the next one
    assert copied == (1 + blocks * (STEPS - 1)) * waiting // blocks
    # the most is there while the last block computes, whose own do not wait yet
    taken = counted.peak - (waiting + other - waiting // blocks)
    assert abs(taken - work.activations) < 0.05 * taken


def test_a_run_that_fails_leaves_the_next_as_it_was(transformer):
    request = asked(transformer)
    expected = sample(request)

    def stop(step: int, *_: object) -> None:
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(OffloadRunner(None, "cpu"), [request], callback=stop)
    assert torch.equal(sample(request), expected)
    assert transformer.precomputed is None


def test_a_lora_whose_strength_changes_on_the_way(transformer, tmp_path):
    generator = torch.Generator().manual_seed(1)
    name = "double_blocks.0.img_attn.qkv"
    file = {
        f"{name}.lora_A.weight": torch.randn(4, tiny_models.HIDDEN, generator=generator),
        f"{name}.lora_B.weight": torch.randn(3 * tiny_models.HIDDEN, 4, generator=generator),
    }
    lora = load_lora(tiny_models.save(file, tmp_path / "lora.safetensors"))
    request = asked(transformer, loras=[(lora, 1.0)])

    def drawn(keep: Keep, last: float) -> Tensor:
        def weaker(step: int, *_: object) -> None:
            if step == 1:
                branches_for(transformer, [lora], dict).set_strengths([last])  # type: ignore

        from flux_core.lora import lora_applied

        with lora_applied(transformer, request.loras):
            return sample(request, "cpu", weaker, keep)

    assert torch.equal(drawn(True, 0.25), drawn(False, 0.25))
    assert torch.equal(drawn(on_host, 0.25), drawn(False, 0.25))
    assert not torch.equal(drawn(True, 0.25), drawn(True, 1.0))


def everything(transformer, attention: str) -> DrawRequest:
    """References with regions, spans, a bias, a mask, a ControlNet and a batch."""
    net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
    bias = torch.randn(1, 5 + 9, 5 + 9, generator=torch.Generator().manual_seed(5))
    first = replace(prompt(1, attention), attention=AttentionBias(bias, 3, 3))
    second = replace(prompt(3, attention, "uxo"), region=Region(area=(4, 4, 0, 2)), end=0.7)
    mask = torch.zeros(1, 1, 7, 9)
    mask[..., 2:5, 3:8] = 1
    return asked(
        transformer,
        positive=[first, second],
        negative=[prompt(2, attention)],
        latents=latents(7, 9, 7).expand(2, -1, -1, -1),
        mask=mask,
        controls=[Control(net, latents(7, 9, 8), 0.7)],
    )


@pytest.mark.parametrize("attention", ["joint", "self"])
def test_all_together_and_each_counts(transformer, attention):
    request = everything(transformer, attention)
    expected = sample(request)
    assert expected.shape == (2, 16, 7, 9) and expected.isfinite().all()
    assert torch.equal(sample(request, keep=False), expected)
    assert torch.equal(sample(request, keep=on_host), expected)
    for mode in ("component", "stream"):
        assert torch.equal(draw(OffloadRunner(OffloadPolicy(mode), "cpu"), [request])[0], expected)
    first, second = request.positives
    outside = (request.mask == 0).expand(2, 16, -1, -1)
    assert torch.allclose(expected[outside], request.latents[outside], atol=1e-5)
    without = [
        replace(request, positive=[replace(first, references=None), second]),
        replace(request, positive=[first, replace(second, references=None)]),
        replace(request, positive=[replace(first, attention=None), second]),
        replace(request, negative=[replace(request.negatives[0], references=None)]),
        replace(request, controls=()),
    ]
    for other in without:
        assert tiny_models.relative(sample(other), expected) > 1e-4
