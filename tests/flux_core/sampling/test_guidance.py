"""Guidance away from a negative prompt, against formulas written out by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flux_core import FluxTransformer
from flux_core.offload.modulations import PrecomputedModulations
from flux_core.sampling.conditioning import Region
from flux_core.sampling.guidance import GuidanceOptions
from flux_core.sampling.latents import image_ids, pack, text_ids, unpack
from flux_core.sampling.run import DrawRequest, SamplingSettings, sample
from flux_core.sampling.samplers import SAMPLERS
from flux_core.sampling.sigmas import make_sigmas, table_for
from tests import tiny_models
from tests.flux_core.sampling.test_regional import prompt
from tests.tiny_models import relative

SIDE = 4


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer(tiny_models.TWO_OF_EACH).requires_grad_(False)


def asked(transformer: FluxTransformer, steps: int = 4, **settings) -> DrawRequest:
    sampling = SamplingSettings(seed=1, steps=steps, **settings)
    start = torch.zeros(2, 16, SIDE, SIDE)
    return DrawRequest(transformer, prompt(0), start, sampling, negative=prompt(1))


def velocity(transformer: FluxTransformer, x: Tensor, sigma: Tensor, seed: int) -> Tensor:
    """What the transformer says, called by hand."""
    text = prompt(seed)
    assert text.pooled is not None
    out = transformer(
        pack(x),
        image_ids(SIDE, SIDE),
        text.context.expand(2, -1, -1),
        text_ids(5),
        sigma.expand(2),
        text.pooled.expand(2, -1),
        torch.full((2,), 3.5),
    )
    return unpack(out, SIDE, SIDE)


def euler_by_hand(transformer: FluxTransformer, request: DrawRequest, combine) -> Tensor:
    """Latents drawn by ``combine(step, ours, theirs, x, sigma)``, a velocity of velocities."""
    schedule = request.noise_schedule
    x = schedule.noise
    for i, sigma in enumerate(schedule.sigmas[:-1]):
        ours = velocity(transformer, x, sigma, 0)
        theirs = velocity(transformer, x, sigma, 1)
        x = x + combine(i, ours, theirs, x, sigma) * (schedule.sigmas[i + 1] - sigma)
    return x / 0.3611 + 0.1159


def calls(transformer: FluxTransformer, request: DrawRequest) -> tuple[Tensor, Counter[float]]:
    """What is drawn, and how often the transformer was asked at each sigma."""
    seen: Counter[float] = Counter()

    def count(_module, _args, kwargs) -> None:
        seen[float(kwargs["timesteps"][0])] += 1

    handle = transformer.register_forward_pre_hook(count, with_kwargs=True)
    try:
        return sample(request), seen
    finally:
        handle.remove()


def test_a_plain_run_has_the_bits_of_the_transformer_called_by_hand(transformer):
    """Its modulations computed for all steps at once, as a run computes them."""
    for cfg in (1.0, 2.5):
        request = asked(transformer, cfg=cfg)
        schedule = request.noise_schedule
        vecs = {}
        for sigma in schedule.sigmas[:-1]:
            for seed in (0, 1) if cfg != 1.0 else (0,):
                pooled = prompt(seed).pooled
                assert pooled is not None
                vec = transformer.embed_vector(
                    sigma.expand(2), pooled.expand(2, -1), torch.full((2,), 3.5)
                )
                vecs[float(sigma), str(seed)] = vec
        known = PrecomputedModulations(transformer, vecs)

        def by_hand(x: Tensor, sigma: Tensor, seed: int, known=known) -> Tensor:
            known.select((float(sigma), str(seed)))
            transformer.precomputed = known
            try:
                return x - sigma * velocity(transformer, x, sigma, seed)
            finally:
                transformer.precomputed = None

        def model(x: Tensor, sigma: Tensor, cfg: float = cfg) -> Tensor:
            ours = by_hand(x, sigma, 0)
            if cfg == 1.0:
                return ours
            theirs = by_hand(x, sigma, 1)
            return theirs + cfg * (ours - theirs)

        start = sigma_noise(schedule.sigmas[0], schedule.noise)
        x = SAMPLERS["euler"](model, start, schedule.sigmas, no_noise, lambda *_: None)
        assert torch.equal(sample(request), x / 0.3611 + 0.1159)


def no_noise(_step: int) -> Tensor:
    raise AssertionError("Euler's method takes none")


def sigma_noise(sigma: Tensor, noise: Tensor) -> Tensor:
    """The run's first x: noise, and what raw latents of zeros leave of the picture."""
    return sigma * noise + (1 - sigma) * (torch.zeros_like(noise) - 0.1159) * 0.3611


def test_outside_its_span_the_negative_prompt_is_not_drawn(transformer):
    table = table_for(asked(transformer).transformer.family or family(transformer))
    sigmas = make_sigmas(table, "simple", 4)
    shares = [0.0, 0.25, 0.5, 0.75]  # where the steps of ``simple`` lie
    for start, end in ((0.0, 0.5), (0.25, 0.75), (0.5, 1.0), (0.3, 0.7), (0.0, 0.0)):
        options = GuidanceOptions(start=start, end=end)
        request = asked(transformer, cfg=3.0, guidance_options=options)
        drawn, seen = calls(transformer, request)
        guided = [start <= share <= end for share in shares]
        expected = [2 if both else 1 for both in guided]
        assert [seen[float(s)] for s in sigmas[:-1]] == expected, (start, end)

        def combine(i, ours, theirs, *_, guided=guided) -> Tensor:
            return theirs + (3.0 if guided[i] else 1.0) * (ours - theirs)

        assert relative(drawn, euler_by_hand(transformer, request, combine)) < 1e-5
    everywhere = sample(asked(transformer, cfg=3.0))
    assert torch.equal(
        everywhere, sample(asked(transformer, cfg=3.0, guidance_options=GuidanceOptions()))
    )
    assert relative(drawn, everywhere) > 1e-3


class TestAreasOfTheNegativePrompt:
    """They split the positive one's picture where both are compared, and nowhere else."""

    def both(self, transformer, positive, **span):
        options = GuidanceOptions(**span)
        area = prompt(2, region=Region(area=(2, 4, 0, 0)))
        plain = asked(transformer, cfg=3.0, guidance_options=options)
        plain = replace(plain, positive=positive)
        return replace(plain, negative=[prompt(1), area]), replace(plain, negative=None)

    @pytest.mark.parametrize(
        "positive",
        [
            prompt(0),
            [prompt(0), prompt(3, region=Region(area=(2, 2, 0, 0), strength=0.5))],
            [
                prompt(0, region=Region(background=True)),
                prompt(3, region=Region(area=(2, 2, 1, 1))),
            ],
        ],
    )
    def test_outside_the_span_they_cost_and_change_nothing(self, transformer, positive):
        never, without = self.both(transformer, positive, start=0.9)
        drawn, seen = calls(transformer, never)
        expected, plain = calls(transformer, without)
        assert seen == plain and torch.equal(drawn, expected)

    def test_inside_it_they_are_compared_area_by_area(self, transformer):
        late, without = self.both(transformer, prompt(0), start=0.5)
        everywhere, _ = self.both(transformer, prompt(0))
        pictures: dict[str, list[Tensor]] = {}
        for name, request in (("late", late), ("without", without)):
            kept = pictures.setdefault(name, [])
            sample(request, callback=lambda step, total, picture, kept=kept: kept.append(picture))
        early = [torch.equal(*two) for two in zip(*pictures.values(), strict=True)]
        assert early == [True, True, False, False]
        assert sum(calls(transformer, late)[1].values()) == 2 * 1 + 2 * 4
        assert sum(calls(transformer, everywhere)[1].values()) == 4 * 4
        assert late.work.activations <= everywhere.work.activations


def family(transformer: FluxTransformer):
    from flux_core.models.families import family_of

    return family_of(transformer)


def projection(ours: Tensor, theirs: Tensor) -> Tensor:
    """By a loop over pictures."""
    scales = [
        float(a.flatten().double() @ b.flatten().double() / b.double().square().sum())
        for a, b in zip(ours, theirs, strict=True)
    ]
    return torch.tensor(scales)[:, None, None, None]


def test_cfg_zero_star_is_the_papers(transformer):
    """v = a v_u + s (v_c - a v_u), arXiv:2503.18886, and no step at first."""
    options = GuidanceOptions(cfg_zero="velocity", zero_steps=1)
    request = asked(transformer, cfg=2.0, guidance_options=options)
    drawn, seen = calls(transformer, request)

    def combine(i, ours, theirs, *_) -> Tensor:
        scale = projection(ours, theirs)
        return torch.zeros_like(ours) if i == 0 else scale * theirs + 2.0 * (ours - scale * theirs)

    assert relative(drawn, euler_by_hand(transformer, request, combine)) < 1e-5
    assert 1.0 not in seen and sum(seen.values()) == 6


def test_cfg_zero_star_of_pictures_is_the_hosts_node(transformer):
    """Its formula: out + u (a - 1) + s u (1 - a), u the negative picture, out that of CFG."""
    options = GuidanceOptions(cfg_zero="picture")
    request = asked(transformer, cfg=2.0, guidance_options=options)

    def combine(_i, ours, theirs, x, sigma) -> Tensor:
        c, u = x - sigma * ours, x - sigma * theirs
        out, scale = u + 2.0 * (c - u), projection(x - c, x - u)
        return (x - (out + u * (scale - 1) + 2.0 * u * (1 - scale))) / sigma

    assert relative(sample(request), euler_by_hand(transformer, request, combine)) < 1e-5


def test_rescaling_is_that_of_diffusers(transformer):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    options = GuidanceOptions(rescale=0.7)
    request = asked(transformer, cfg=4.0, guidance_options=options)

    def combine(_i, ours, theirs, *_) -> Tensor:
        return rescale_noise_cfg(theirs + 4.0 * (ours - theirs), ours, guidance_rescale=0.7)

    assert relative(sample(request), euler_by_hand(transformer, request, combine)) < 1e-5


def test_positive_bias_is_the_hosts_mahiro_for_each_picture():
    generator = torch.Generator().manual_seed(0)
    x, ours, theirs = (torch.randn(3, 16, 4, 4, generator=generator) for _ in range(3))
    cfg = 3.0
    drawn = GuidanceOptions(positive_bias=True).combine(x, ours, theirs, cfg)
    for i in range(3):
        c, u = ours[i], theirs[i]
        out, leap = u + cfg * (c - u), c * cfg
        merge = (leap + out) / 2
        a, b = (t.abs().sqrt() * t.sign() for t in (u * cfg, merge))
        alike = (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0))
        weight = 2 * (float(alike.mean()) + 1)
        assert relative(drawn[i], (weight * out + (4 - weight) * leap) / 4) < 1e-5


def thresholded_by_loop(ours: Tensor, theirs: Tensor, cfg: float, mimic: float, share: float):
    """Channel by channel in float64: the percentile interpolated between sorted values."""
    result = torch.empty_like(ours, dtype=torch.float64)
    for i in range(ours.shape[0]):
        for j in range(ours.shape[1]):
            c, u = ours[i, j].double().flatten(), theirs[i, j].double().flatten()
            ranges = []
            for scale in (cfg, mimic):
                guided = u + scale * (c - u)
                ranges.append([abs(float(value) - float(guided.mean())) for value in guided])
            values = sorted(ranges[0])
            place = share * (len(values) - 1)
            low = int(place)
            high = min(low + 1, len(values) - 1)
            reach = values[low] + (place - low) * (values[high] - values[low])
            span = max(ranges[1])
            bound = max(reach, span)
            guided = u + cfg * (c - u)
            mean = float(guided.mean())
            cut = [max(-bound, min(bound, float(value) - mean)) for value in guided]
            values = [mean + value / bound * span for value in cut]
            result[i, j] = torch.tensor(values, dtype=torch.float64).view(ours.shape[2:])
    return result


@pytest.mark.parametrize(("mimic", "share"), [(2.0, 1.0), (2.0, 0.9), (0.0, 0.5), (100.0, 0.7)])
def test_thresholding_is_that_of_the_formula_written_out(transformer, mimic, share):
    options = GuidanceOptions(mimic_scale=mimic, threshold_percentile=share)
    request = asked(transformer, cfg=6.0, guidance_options=options)

    def combine(_i, ours, theirs, x, sigma) -> Tensor:
        c, u = x - sigma * ours, x - sigma * theirs
        return ((x - thresholded_by_loop(c, u, 6.0, mimic, share)) / sigma).float()

    drawn = sample(request)
    assert relative(drawn, euler_by_hand(transformer, request, combine)) < 1e-5
    apart = relative(drawn, sample(asked(transformer, cfg=6.0)))
    assert apart < 1e-5 if mimic == 100.0 else apart > 1e-2, "a larger range than its own is no cut"


def test_thresholding_takes_each_channel_of_each_picture_by_itself():
    generator = torch.Generator().manual_seed(0)
    x, ours, theirs = (torch.randn(3, 16, 4, 4, generator=generator) for _ in range(3))
    ours[1] *= 10
    ours[0, 3] = theirs[0, 3] = 2.0  # without any range
    options = GuidanceOptions(mimic_scale=1.5, threshold_percentile=0.8)
    together = options.combine(x, ours, theirs, 5.0)
    assert bool(together.isfinite().all()) and torch.equal(together[0, 3], ours[0, 3])
    for i in range(3):
        alone = options.combine(*(t[i : i + 1] for t in (x, ours, theirs)), 5.0)
        assert torch.equal(alone[0], together[i])


def test_the_work_of_thresholding_is_counted(transformer):
    from flux_core.offload.activations import LiveBytes

    shape = (1, 16, 128, 128)  # where what is made of pictures is more than a call
    requests = []
    for options in (GuidanceOptions(), GuidanceOptions(mimic_scale=2.0, threshold_percentile=0.9)):
        request = asked(transformer, cfg=4.0, steps=2, guidance_options=options)
        requests.append(replace(request, latents=torch.zeros(shape)))
    x, ours, theirs = (torch.randn(shape) for _ in range(3))
    taken = []
    for request in requests:
        with LiveBytes() as counted:
            request.settings.guidance_options.combine(x, ours, theirs, 4.0)
        taken.append(counted.peak)
    assert taken[1] > taken[0]
    assert requests[1].work.activations >= requests[0].work.activations


def test_zero_steps_leave_the_noise_with_every_sampler(transformer):
    """All steps but the last leave it: the last one draws from the noise itself."""
    for sampler in ("euler", "heun", "dpmpp_2m"):
        options = GuidanceOptions(zero_steps=3)
        request = asked(transformer, sampler=sampler, guidance_options=options)
        _, seen = calls(transformer, request)
        sigma = request.noise_schedule.sigmas[3]
        assert seen == {float(sigma): 1 + (sampler == "heun")}
    for count in (4, 9):
        nothing = asked(transformer, guidance_options=GuidanceOptions(zero_steps=count))
        with pytest.raises(ValueError, match=f"zero_steps is {count}, expected fewer than the 4"):
            sample(nothing)


def test_the_work_of_a_span_counts_no_modulations_outside(transformer):
    start, options = torch.zeros(2, 16, 32, 32), GuidanceOptions(end=0.25)
    requests = [
        replace(asked(transformer, **settings), latents=start)
        for settings in ({"cfg": 2.0, "guidance_options": options}, {"cfg": 2.0})
    ]
    half, whole = (request.work.activations for request in requests)
    layers = [*transformer.double_blocks, *transformer.single_blocks]
    width = sum(m.width for block in layers for m in block.modulation_layers())
    assert whole - half == 2 * 2 * 4 * width  # two steps more, two pictures, four bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0.6, "end": 0.5}, "guidance's start is 0.6, after its end 0.5"),
        ({"cfg_zero": "on"}, "cfg_zero is 'on', expected one of off, velocity, picture"),
        ({"zero_steps": -1}, "zero_steps is -1"),
        ({"rescale": 2}, "rescale is 2, expected 0 to 1"),
        ({"mimic_scale": -1.0}, "mimic_scale is -1.0, expected 0 to 1000"),
        ({"threshold_percentile": 2}, "threshold_percentile is 2, expected 0 to 1"),
        ({"nag": 3.0}, "nag is 3.0, expected"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GuidanceOptions(**options)


def test_settings_take_nothing_else_for_options():
    with pytest.raises(ValueError, match="guidance_options is 3.5, expected GuidanceOptions"):
        SamplingSettings(guidance_options=3.5)  # type: ignore[arg-type]
