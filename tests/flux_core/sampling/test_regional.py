"""Regional prompts by attention, against loops over every pair of tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flux_core import Conditioning, FluxTransformer, OffloadPolicy
from flux_core.models.layers import apply_rotary
from flux_core.models.patches import EmbeddedInputs
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.sampling.conditioning import AttentionBias, Region, RegionalOptions, RegionalPrompts
from flux_core.sampling.guidance import GuidanceOptions
from flux_core.sampling.latents import image_ids, pack, text_ids, unpack
from flux_core.sampling.nag import NormalizedAttentionGuidance
from flux_core.sampling.references import References, reference_tokens
from flux_core.sampling.regional import as_regional, covers
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw, sample
from tests import tiny_models
from tests.tiny_models import relative

HEIGHT, WIDTH = 5, 7  # odd: the last row and column of tokens are half outside
ROWS, COLUMNS = 3, 4


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer().requires_grad_(False)


def prompt(seed: int, tokens: int = 5, **options) -> Conditioning:
    g = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(1, tokens, tiny_models.CONTEXT, generator=g),
        torch.randn(1, tiny_models.POOLED, generator=g),
        **options,
    )


def left_mask() -> Tensor:
    """Large, soft at its edge."""
    mask = torch.zeros(1, 8 * HEIGHT, 8 * WIDTH)
    mask[..., :24] = 1
    mask[..., 24:32] = 0.25
    return mask


def regions() -> tuple[Conditioning, Conditioning]:
    right = Region(area=(3, 3, 2, 4), strength=1.5)
    return prompt(1, 3, region=Region(mask=left_mask())), prompt(2, 4, region=right)


def a_run(transformer: FluxTransformer, positive: Conditioning, **options) -> DrawRequest:
    settings = SamplingSettings(seed=3, steps=3, **options.pop("settings", {}))
    batch = options.pop("batch", 2)
    start = torch.zeros(batch, 16, HEIGHT, WIDTH)
    return DrawRequest(transformer, positive, start, settings, **options)


class LoopedAttention:
    """Attention as a loop over queries, each of which reads what ``weight`` allows."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def embedded(self, inputs: EmbeddedInputs) -> EmbeddedInputs:
        return inputs

    def block(self, kind, index, tokens, state, run):
        return run(tokens, replace(state, attend=self))

    def __call__(self, q, k, v, rotary, mask=None) -> Tensor:
        q, k = apply_rotary(q, rotary).double(), apply_rotary(k, rotary).double()
        out = []
        for i in range(q.shape[1]):
            keys = self.weight[i].nonzero().flatten()
            logits = torch.einsum("bhd,bkhd->bhk", q[:, i], k[:, keys]) / math.sqrt(q.shape[-1])
            shares = self.weight[i, keys].double() * logits.exp()
            shares = shares / shares.sum(-1, keepdim=True)
            out.append(torch.einsum("bhk,bkhd->bhd", shares, v[:, keys].double()).flatten(1))
        return torch.stack(out, dim=1).to(v.dtype)


def token_cover(row: int, column: int) -> tuple[float, float]:
    """Of one token the mean over those of its latents that are in the picture."""
    sums, count = [0.0, 0.0], 0
    for y in (2 * row, 2 * row + 1):
        for x in (2 * column, 2 * column + 1):
            if y < HEIGHT and x < WIDTH:
                count += 1
                sums[0] += 1.0 if x < 3 else 0.25 if x == 3 else 0.0
                sums[1] += 1.0 if 2 <= y < 5 and 4 <= x < 7 else 0.0
    return sums[0] / count, sums[1] / count


# long: one rule after another, as the documentation says them
def weights_by_loop(regional: RegionalPrompts, level: float, references: int = 0) -> Tensor:
    """How much each token reads each other, (T, T), from the rules alone."""
    kinds: list[tuple[str, int]] = [("text", t) for t in (0,) * 5 + (1,) * 3 + (2,) * 4]
    if level == 0:
        kinds = [("text", 0)] * 5
    kinds += [("image", i) for i in range(ROWS * COLUMNS)] + [("reference", 0)] * references
    shares = []
    for i in range(ROWS * COLUMNS):
        left, right = token_cover(i // COLUMNS, i % COLUMNS)
        shares.append((max(0.0, 1 - left - right), left, right))
    strengths = (1.0, 1.0, 1.5)
    weight = torch.zeros(len(kinds), len(kinds), dtype=torch.float64)

    def text_and_image(text: int, image: int) -> float:
        if text:
            return shares[image][text]
        return 1 - level * (1 - regional.options.base) * (1 - shares[image][0])

    for a, (kind, one) in enumerate(kinds):
        for b, (other, two) in enumerate(kinds):
            match kind, other:
                case "text", "text":
                    weight[a, b] = one == two
                case "text", "image":
                    weight[a, b] = text_and_image(one, two)
                case "image", "text":
                    read = text_and_image(two, one) * strengths[two]
                    weight[a, b] = read * (level if two else 1)
                case "image", "image":
                    together = sum(p * q for p, q in zip(shares[one], shares[two], strict=True))
                    apart = 1 - level * (1 - regional.options.across)
                    weight[a, b] = 1 if one == two else min(1.0, max(apart, together))
                case "reference", "text":
                    weight[a, b] = two == 0
                case _:
                    weight[a, b] = 1
    return weight


def by_hand(
    transformer: FluxTransformer, positive: Conditioning, sigma: float, x: Tensor, level: float
) -> Tensor:
    """The velocity that a request should see, with attention as a loop."""
    assert positive.regional is not None
    some = [positive, *(positive.regional.prompts if level else ())]
    text = torch.cat([p.context for p in some], dim=1).expand(len(x), -1, -1)
    img, ids = pack(x), image_ids(HEIGHT, WIDTH)
    tokens, references = img.shape[1], 0
    if positive.references is not None:
        latents = [(z - 0.1159) * 0.3611 for z in positive.references.latents]
        more, places = reference_tokens(latents, "offset", HEIGHT, WIDTH, len(x))
        img, ids, references = torch.cat([img, more], 1), torch.cat([ids, places]), more.shape[1]
    weight = weights_by_loop(positive.regional, level, references)
    out = transformer(
        img,
        ids,
        text,
        text_ids(text.shape[1]),
        torch.full((len(x),), sigma),
        positive.pooled.expand(len(x), -1),
        torch.full((len(x),), 3.5),
        patches=LoopedAttention(weight),
    )
    return unpack(out[:, :tokens], HEIGHT, WIDTH)


def drawn_by_hand(
    transformer, request: DrawRequest, levels: list[float], cfg_prompt=None
) -> Tensor:
    sigmas, x = request.noise_schedule.sigmas, request.noise_schedule.noise
    for i, level in enumerate(levels):
        v = by_hand(transformer, request.positives[0], float(sigmas[i]), x, level)
        x = x + v * (sigmas[i + 1] - sigmas[i])
    return x / 0.3611 + 0.1159


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        ({"share": 1.0, "base": 0.0}, [1.0, 1.0, 1.0]),
        ({"share": 0.3, "base": 0.4, "across": 0.0}, [1.0, 0.0, 0.0]),
        ({"share": 0.6, "base": 1.0, "across": 0.5, "later": 0.25}, [1.0, 1.0, 0.25]),
        ({"share": 0.0, "later": 1.0, "across": 0.0}, [1.0, 1.0, 1.0]),
    ],
)
def test_a_run_reads_what_a_loop_over_all_pairs_reads(transformer, options, levels):
    regional = RegionalPrompts(regions(), RegionalOptions(**options))
    request = a_run(transformer, prompt(0, regional=regional))
    shifted = request.noise_schedule.table
    for sigma, level in zip(request.noise_schedule.sigmas.tolist(), levels, strict=False):
        done = 1 - torch.linspace(0, 1, 10001)
        share = float(done[(shifted.sigma(done[:-1]) - sigma).abs().argmin()])
        assert (1 - share < regional.options.share) == (level == 1.0) or regional.options.later == 1
    assert relative(sample(request), drawn_by_hand(transformer, request, levels)) < 1e-5
    plain = sample(a_run(transformer, prompt(0)))
    assert relative(sample(request), plain) > 1e-3


def test_references_are_read_by_all_and_read_the_global_text(transformer):
    more = References((torch.randn(1, 16, 4, 3, generator=torch.Generator().manual_seed(5)),))
    regional = RegionalPrompts(regions(), RegionalOptions(share=1.0, across=0.0))
    request = a_run(transformer, prompt(0, references=more, regional=regional))
    assert relative(sample(request), drawn_by_hand(transformer, request, [1.0] * 3)) < 1e-5


def test_masks_of_every_size_cover_the_same_tokens():
    small = torch.zeros(4, 4)
    small[:, :2] = 1
    for scale in (1, 2, 16, 128):
        mask = small.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        regional = RegionalPrompts([prompt(1, region=Region(mask=mask))])
        cover = covers(regional, 8, 8)
        assert cover.shape == (1, 1, 16)
        assert cover.reshape(4, 4)[:, 0].eq(1).all() and cover.reshape(4, 4)[:, 3].eq(0).all()
        assert float(cover.mean()) == pytest.approx(0.5)


def test_pictures_of_a_batch_have_masks_of_their_own(transformer):
    two = torch.zeros(2, 16, 16)
    two[0, :, :8] = 1
    two[1, :, 8:] = 1

    def run(mask: Tensor) -> Tensor:
        regional = RegionalPrompts(
            [prompt(1, region=Region(mask=mask))], RegionalOptions(share=1.0)
        )
        return sample(a_run(transformer, prompt(0, regional=regional)))

    both = run(two)
    assert relative(both[:1], run(two[:1])[:1]) < 1e-5
    assert relative(both[1:], run(two[1:])[1:]) < 1e-5
    assert relative(both[1:], run(two[:1])[1:]) > 1e-4


def test_a_biased_token_of_each_text_is_read_less(transformer):
    """Closing a text's last token is leaving it out, of the global prompt as of a region."""
    grid = ROWS * COLUMNS

    def closed(text: int) -> AttentionBias:
        values = torch.ones(text + grid, text + grid, dtype=torch.bool)
        values[:, text - 1] = False
        return AttentionBias(values, ROWS, COLUMNS)

    def run(whole: Conditioning, region: Conditioning) -> Tensor:
        regional = RegionalPrompts([region], RegionalOptions(share=0.5))
        return sample(a_run(transformer, replace(whole, regional=regional)))

    whole, region = prompt(0, 5), prompt(1, 3, region=Region(mask=left_mask()))
    shorter = replace(region, context=region.context[:, :2])
    expected = run(whole, shorter)
    assert relative(run(whole, replace(region, attention=closed(3))), expected) < 1e-5
    expected = run(replace(whole, context=whole.context[:, :4]), region)
    assert relative(run(replace(whole, attention=closed(5)), region), expected) < 1e-5
    assert relative(run(whole, region), expected) > 1e-4


def test_every_policy_gives_the_same_bits_with_all_that_there_is(transformer):
    more = References((torch.ones(1, 16, 4, 3),))
    regional = RegionalPrompts(regions(), RegionalOptions(share=0.5, across=0.2, later=0.3))
    options = GuidanceOptions(nag=NormalizedAttentionGuidance(), cfg_zero="velocity", end=0.8)
    request = a_run(
        transformer,
        prompt(0, references=more, regional=regional),
        negative=prompt(7, 6),
        settings={"cfg": 2.0, "guidance_options": options},
    )
    expected = sample(request)
    assert bool(expected.isfinite().all())
    for policy in (
        OffloadPolicy("none"),
        OffloadPolicy("component", separate_memory=True),
        OffloadPolicy("stream", separate_memory=True),
        OffloadPolicy("auto", vram_budget=8_000_000, separate_memory=True),
    ):
        (drawn,) = draw(OffloadRunner(policy, "cpu"), [request])
        assert torch.equal(drawn, expected), policy.mode


@pytest.mark.parametrize("case", ["regions", "apart", "nag", "nag and apart", "bias"])
def test_a_run_takes_the_memory_that_was_predicted(transformer, case):
    side, generator = 48, torch.Generator().manual_seed(0)
    regional = RegionalPrompts(
        (
            prompt(1, 40, region=Region((1, 0.5, 0, 0), shares=True)),
            prompt(2, 30, region=Region((1, 0.5, 0, 0.5), shares=True)),
        ),
        RegionalOptions(share=0.5, across=0.0 if "apart" in case else 1.0),
    )
    positive = prompt(0, 40, regional=regional if case != "nag" else None)
    if case == "bias":
        values = torch.randn(40 + 576, 40 + 576, generator=generator)
        positive = replace(positive, regional=None, attention=AttentionBias(values, 24, 24))
    nag = NormalizedAttentionGuidance() if "nag" in case else None
    settings = SamplingSettings(steps=2, guidance_options=GuidanceOptions(nag=nag))
    request = DrawRequest(
        transformer, positive, torch.zeros(1, 16, side, side), settings, negative=prompt(9, 50)
    )
    counted, plans = LiveBytes(), []

    def run(plan) -> Tensor:
        plans.append(plan)
        return sample(request)

    runner = OffloadRunner(OffloadPolicy("component", separate_memory=True), "cpu")
    with counted:
        runner.run("transformer", [transformer], run, request.work)
    assert counted.peak == pytest.approx(plans[-1].peak, rel=0.05)


def test_prompts_with_masks_become_regions():
    whole, region = prompt(0), prompt(1, region=Region(mask=left_mask()))
    made_of = as_regional([region, whole], RegionalOptions(share=0.25))
    assert made_of.context is whole.context
    assert made_of.regional is not None and made_of.regional.options.share == 0.25
    assert list(made_of.regional.prompts) == [region]
    with pytest.raises(ValueError, match="2 prompts have no mask and no area"):
        as_regional([whole, whole, region])
    with pytest.raises(ValueError, match="0 prompts have no mask"):
        as_regional([region])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"region": Region()}, "neither a mask nor an area"),
        ({"end": 0.5}, "a span of its own"),
        ({"references": References((torch.ones(1, 16, 4, 3),))}, "reference latents"),
        ({"picture": torch.ones(1, 16, 4, 3)}, "a picture beside the noise"),
        ({"region": Region(mask=left_mask(), strength=-1.0)}, "strength is -1.0"),
        ({"region": Region(mask=left_mask(), background=True)}, "left by others"),
    ],
)
def test_a_region_cannot_have_what_a_whole_picture_has(change, message):
    with pytest.raises(ValueError, match=message):
        RegionalPrompts([replace(regions()[0], **change)])


def test_numbers_of_regions_are_checked(transformer):
    for name in ("share", "base", "across", "later"):
        with pytest.raises(ValueError, match=f"regional prompts' {name} is 1.5, expected"):
            RegionalOptions(**{name: 1.5})
    with pytest.raises(ValueError, match="expected at least one region"):
        RegionalPrompts(())
    narrow = replace(regions()[0], context=torch.ones(1, 3, 7))
    request = a_run(transformer, prompt(0, regional=RegionalPrompts([narrow])))
    with pytest.raises(ValueError, match="T5 context is 7 wide"):
        sample(request)
