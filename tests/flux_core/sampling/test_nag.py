"""Normalized attention guidance, against the host's formula on pictures drawn twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flux_core import Control, FluxControlNet, FluxTransformer, OffloadPolicy, compile_blocks
from flux_core.models.patches import EmbeddedInputs
from flux_core.offload import OffloadRunner
from flux_core.sampling.conditioning import AttentionBias, Conditioning, Region
from flux_core.sampling.guidance import GuidanceOptions
from flux_core.sampling.latents import image_ids, pack, text_ids, unpack
from flux_core.sampling.nag import NormalizedAttentionGuidance, normalized_guidance
from flux_core.sampling.references import References
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw, sample
from tests import tiny_models
from tests.flux_core.sampling.test_guidance import calls
from tests.flux_core.sampling.test_regional import prompt
from tests.tiny_models import relative

SIDE, TEXT = 4, 5


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer(tiny_models.TWO_OF_EACH).requires_grad_(False)


def guided(
    transformer: FluxTransformer, steps: int = 2, negative: int = TEXT, **nag
) -> DrawRequest:
    """Two pictures with NAG, whose negative prompt has so many tokens."""
    options = GuidanceOptions(nag=NormalizedAttentionGuidance(**nag))
    settings = SamplingSettings(seed=1, steps=steps, guidance_options=options)
    start = torch.zeros(2, 16, SIDE, SIDE)
    return DrawRequest(transformer, prompt(0), start, settings, negative=prompt(1, negative))


def plain(request: DrawRequest) -> DrawRequest:
    """The same without NAG."""
    options = replace(request.settings.guidance_options, nag=None)
    return replace(request, settings=replace(request.settings, guidance_options=options))


def formula(z_pos: Tensor, z_neg: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """As the host's node computes it."""
    out = z_pos * scale - z_neg * (scale - 1.0)
    norm_pos = torch.norm(z_pos, p=1, dim=-1, keepdim=True).clamp_min(1e-6)
    norm_out = torch.norm(out, p=1, dim=-1, keepdim=True).clamp_min(1e-6)
    ratio = norm_out / norm_pos
    factor = torch.minimum(ratio, torch.full_like(ratio, tau)) / ratio
    return out * factor * alpha + z_pos * (1.0 - alpha)


class Doubled:
    """The host's way: a batch of pictures with the negative text, then of those with the positive
    one, and both get the guided attention on image tokens."""

    def __init__(self, text: int, numbers: tuple[float, float, float]) -> None:
        self.text, self.numbers = text, numbers

    def embedded(self, inputs: EmbeddedInputs) -> EmbeddedInputs:
        return inputs

    def block(self, kind, index, tokens, state, run):
        return run(tokens, replace(state, attend=self))

    def __call__(self, q, k, v, rotary, mask=None) -> Tensor:
        from flux_core.models.layers import attention

        negative, positive = attention(q, k, v, rotary, mask).chunk(2)
        image = formula(positive[:, self.text :], negative[:, self.text :], *self.numbers)
        both = [torch.cat([part[:, : self.text], image], dim=1) for part in (negative, positive)]
        return torch.cat(both)


def drawn_twice(transformer: FluxTransformer, request: DrawRequest) -> Tensor:
    """Euler's method over the host's doubled batch, with the positive's pooled vector for both."""
    nag = request.settings.guidance_options.nag
    assert nag is not None and request.negatives is not None
    ours, (theirs,) = request.positives[0], request.negatives
    assert ours.pooled is not None
    text = torch.cat([p.context.expand(2, -1, -1) for p in (theirs, ours)])
    schedule = request.noise_schedule
    x = schedule.noise
    for i, sigma in enumerate(schedule.sigmas[:-1]):
        out = transformer(
            pack(x).repeat(2, 1, 1),
            image_ids(SIDE, SIDE),
            text,
            text_ids(TEXT),
            sigma.expand(4),
            ours.pooled.expand(4, -1),
            torch.full((4,), 3.5),
            patches=Doubled(TEXT, (nag.scale, nag.tau, nag.alpha)),
        )
        x = x + unpack(out[2:], SIDE, SIDE) * (schedule.sigmas[i + 1] - sigma)
    return x / 0.3611 + 0.1159


@pytest.mark.parametrize("nag", [{}, {"scale": 11.0, "tau": 1.0, "alpha": 1.0}, {"scale": 0.0}])
def test_it_draws_what_the_host_draws_with_the_picture_twice(transformer, nag):
    request = guided(transformer, **nag)
    expected = drawn_twice(transformer, request)
    assert relative(sample(request), expected) < 1e-5
    assert relative(sample(plain(request)), expected) > 1e-3


def test_a_scale_of_one_or_an_alpha_of_zero_is_no_guidance(transformer):
    for nag in ({"scale": 1.0}, {"alpha": 0.0}):
        for tokens in (TEXT, 9):
            request = guided(transformer, negative=tokens, **nag)
            assert relative(sample(request), sample(plain(request))) < 1e-5


def test_the_formula_in_every_dtype():
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(2, 7, 24, generator=generator) for _ in range(2))
    for scale, tau, alpha in ((5.0, 1.5, 0.5), (9.0, 1.0, 1.0), (1.5, 4.0, 0.3)):
        expected = formula(positive, negative, scale, tau, alpha)
        numbers = torch.tensor([scale, tau, alpha])
        assert relative(normalized_guidance(positive, negative, numbers), expected) < 1e-6
        low = [x.bfloat16() for x in (positive, negative)]
        drawn = normalized_guidance(low[0], low[1], numbers)
        assert drawn.dtype == torch.bfloat16
        assert (
            relative(drawn.float(), formula(low[0].float(), low[1].float(), scale, tau, alpha))
            < 4e-3
        )
    zeros = torch.zeros(1, 2, 8)
    assert torch.equal(normalized_guidance(zeros, zeros, torch.tensor([5.0, 1.5, 0.5])), zeros)


def test_a_span_reads_the_negative_text_inside_it_alone(transformer):
    seen: list[int] = []

    def count(_module, _args, kwargs) -> None:
        seen.append(kwargs["txt"].shape[1])

    handle = transformer.register_forward_pre_hook(count, with_kwargs=True)
    try:
        for start, end, expected in (
            (0.0, 1.0, [12, 12, 12, 12]),
            (0.25, 0.5, [5, 12, 12, 5]),
            (0.3, 1.0, [5, 5, 12, 12]),
            (0.0, 0.0, [12, 5, 5, 5]),
        ):
            seen.clear()
            sample(guided(transformer, steps=4, negative=7, start=start, end=end))
            assert seen == expected, (start, end)
    finally:
        handle.remove()


def test_attention_biases_count_for_each_text(transformer):
    """Closing the last token of either text is leaving it out."""
    grid = (SIDE // 2) ** 2

    def closed(text: int) -> AttentionBias:
        values = torch.ones(text + grid, text + grid, dtype=torch.bool)
        values[:, text - 1] = False
        return AttentionBias(values, SIDE // 2, SIDE // 2)

    request = guided(transformer)
    positive, negative = request.positives[0], (request.negatives or [])[0]

    def run(ours: Conditioning, theirs: Conditioning) -> Tensor:
        return sample(replace(request, positive=ours, negative=theirs))

    for which in (0, 1):
        prompts = [positive, negative]
        shorter, masked = list(prompts), list(prompts)
        shorter[which] = replace(prompts[which], context=prompts[which].context[:, :-1])
        masked[which] = replace(prompts[which], attention=closed(TEXT))
        assert relative(run(*masked), run(*shorter)) < 1e-5
        assert relative(run(*masked), run(*prompts)) > 1e-4


def test_with_references_controls_cfg_and_odd_sides_every_policy_gives_the_same_bits(transformer):
    net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=5)
    assert isinstance(net, FluxControlNet)
    options = GuidanceOptions(nag=NormalizedAttentionGuidance(end=0.6), end=0.5)
    latents = torch.zeros(2, 16, 5, 7)
    request = DrawRequest(
        transformer,
        prompt(0, references=References((torch.ones(1, 16, 3, 4),), "index_timestep_zero")),
        latents,
        SamplingSettings(steps=3, cfg=2.0, guidance_options=options),
        negative=prompt(1, 7),
        controls=[Control(net.requires_grad_(False), torch.ones(1, 16, 5, 7))],
    )
    expected = sample(request)
    without = replace(
        request, settings=replace(request.settings, guidance_options=GuidanceOptions(end=0.5))
    )
    assert relative(sample(without), expected) > 1e-3
    for policy in (
        OffloadPolicy("component", separate_memory=True),
        OffloadPolicy("stream", separate_memory=True),
        OffloadPolicy("auto", vram_budget=8_000_000, separate_memory=True),
    ):
        assert torch.equal(draw(OffloadRunner(policy, "cpu"), [request])[0], expected)


def test_the_model_is_called_once_a_step(transformer):
    _, seen = calls(transformer, guided(transformer, steps=3))
    assert list(seen.values()) == [1, 1, 1]


def test_other_numbers_and_prompts_compile_nothing_again(transformer):
    torch._dynamo.reset()
    try:
        compile_blocks(transformer, "eager")
        first = sample(guided(transformer, negative=7))
        with torch.compiler.set_stance("fail_on_recompile"):
            other = guided(transformer, steps=3, negative=7, scale=3.0, tau=2.0, alpha=0.25)
            sample(other)
            sample(replace(other, positive=prompt(5), negative=prompt(6, 7)))
            again = sample(guided(transformer, negative=7))
    finally:
        compile_blocks(transformer, "")
        torch._dynamo.reset()
    assert torch.equal(first, again)
    assert relative(first, sample(guided(transformer, negative=7))) < 1e-5


def test_a_fault_leaves_everything_as_it_was(transformer):
    request = guided(transformer)
    expected = sample(request)
    runner = OffloadRunner(OffloadPolicy("stream", separate_memory=True), "cpu")
    for step in (0, 1):

        def fail(number: int, *_: object, step: int = step) -> None:
            if number == step:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            draw(runner, [request], callback=fail)
        assert transformer.precomputed is None
        assert torch.equal(draw(runner, [plain(request)])[0], sample(plain(request)))
        assert torch.equal(draw(runner, [request])[0], expected)


def test_it_needs_one_negative_prompt(transformer):
    request = guided(transformer)
    part = prompt(2, region=Region(mask=torch.ones(1, 8, 8)))
    for negative, what in (
        (None, "0 negative prompts"),
        ([prompt(1), prompt(2)], "2 negative prompts"),
        ([part], "one of a part of the picture"),
        ([prompt(1, end=0.5)], "one of a part of the picture"),
    ):
        with pytest.raises(ValueError, match=f"NAG has {what}, expected one for the whole"):
            replace(request, negative=negative)


@pytest.mark.parametrize(
    ("nag", "message"),
    [
        ({"scale": -1}, "NAG's scale is -1"),
        ({"tau": 0.5}, "NAG's tau is 0.5"),
        ({"alpha": 1.5}, "NAG's alpha is 1.5"),
        ({"start": 0.5, "end": 0.2}, "NAG's start is 0.5, after its end 0.2"),
    ],
)
def test_numbers_are_checked(nag, message):
    with pytest.raises(ValueError, match=message):
        NormalizedAttentionGuidance(**nag)
