"""Pictures in windows that overlap: weights, what each window reads, bits and bytes."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import Conditioning, Control, FluxControlNet, FluxTransformer, OffloadPolicy
from flux_core.offload import OffloadRunner
from flux_core.offload.activations import LiveBytes
from flux_core.sampling.conditioning import AttentionBias, Region
from flux_core.sampling.latents import image_ids, pack, standardise, text_ids, unpack
from flux_core.sampling.references import References
from flux_core.sampling.regions import Area
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw, sample
from flux_core.sampling.samplers import SAMPLERS
from flux_core.sampling.tiles import Tiling, bias_in
from tests import tiny_models
from tests.flux_core.offload.cpu_as_card import CPU, card_policy

#: Windows of 8x8 latents, 4 of which two share.
TILES = Tiling(64, 32)
SMALL = dataclasses.replace(tiny_models.DEV, depth=1, depth_single_blocks=2)
SIZES = ((8, 8), (9, 8), (16, 16), (17, 23), (30, 9), (5, 40))
STEPS = 2


@pytest.fixture(scope="module")
def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer(SMALL).requires_grad_(False)


def text(seed: int = 0, **options) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(1, 5, tiny_models.CONTEXT, generator=generator),
        torch.randn(1, tiny_models.POOLED, generator=generator),
        **options,
    )


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def asked(transformer, height: int, width: int, batch: int = 1, **options) -> DrawRequest:
    settings = SamplingSettings(**{"steps": STEPS, "seed": 3} | options.pop("settings", {}))
    prompts = {"positive": text()} | options
    return DrawRequest(
        transformer, latents=torch.zeros(batch, 16, height, width), settings=settings, **prompts
    )


def drawn(request: DrawRequest, policy: OffloadPolicy | None = None) -> Tensor:
    return draw(OffloadRunner(policy, CPU), [request])[0]


class TestWindows:
    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("tiles", [TILES, Tiling(64, 16, 0), Tiling(64, 32, 16, moving=True)])
    def test_they_cover_everything_once_in_whole_tokens(self, tiles, size):
        for step in range(4):
            total = torch.zeros(size)
            for area, weight in tiles.windows(*size, step):
                assert area.top % 2 == area.left % 2 == 0 and bool((weight >= 0).all())
                assert area.height == min(8, size[0] - area.top, size[0])
                assert area.width == min(8, size[1] - area.left, size[1])
                area.cut(total).add_(weight)
            assert torch.allclose(total, torch.ones(size), atol=1e-6)

    def test_they_rise_over_the_feather_in_the_middle_of_the_overlap(self):
        first, second = Tiling(64, 32, 16).windows(12, 8)
        assert (first.area, second.area) == (Area(8, 8, 0, 0), Area(8, 8, 4, 0))
        # the overlap is rows 4 to 8, the feather rows 5 to 7
        rising = torch.tensor([0, 0.5 - 0.5**1.5, 0.5 + 0.5**1.5, 1])
        assert torch.allclose(second.weight[:4, 0], rising, atol=1e-6)
        assert torch.allclose(first.weight[4:, 0], 1 - rising, atol=1e-6)

    def test_neighbours_overlap_as_much_as_was_asked(self):
        for length in range(9, 40, 3):
            for moving in (False, True):
                tiles = replace(TILES, moving=moving)
                for step in range(3):
                    tops = sorted({w.area.top for w in tiles.windows(length, 8, step)})
                    gaps = [b - a for a, b in itertools.pairwise(tops)]
                    assert tops[0] == 0 and max(gaps) <= 4 and tops[-1] + 8 >= length

    def test_moving_windows_are_the_same_for_the_same_step_and_move(self):
        tiles = replace(TILES, moving=True)
        places = [[w.area for w in tiles.windows(32, 32, step)] for step in range(5)]
        assert places == [[w.area for w in tiles.windows(32, 32, step)] for step in range(5)]
        assert len({tuple(areas) for areas in places}) > 2

    @pytest.mark.parametrize(
        ("numbers", "message"),
        [
            ((48,), "size of tiles is 48, expected 64 to"),
            ((1000,), "size of tiles is 1000, expected a multiple of 16"),
            ((64, 48), "overlap of tiles is 48, expected 0 to 32"),
            ((128, 24), "overlap of tiles is 24, expected a multiple of 16"),
            ((64, 16, 32), "feather of tiles is 32, expected 0 to 16"),
            ((64, 16, 8), "feather of tiles is 8, expected a multiple"),
            ((64.5,), "size of tiles is 64.5, expected a whole number"),
            ((float("nan"),), "size of tiles is nan"),
        ],
    )
    def test_wrong_numbers_are_named(self, numbers, message):
        with pytest.raises(ValueError, match=message):
            Tiling(*numbers)


class ByHand:
    """A step of Euler's from pure noise, written out: every window a picture of its own."""

    def __init__(self, transformer, request: DrawRequest, tiles: Tiling = TILES) -> None:
        self.transformer, self.request, self.tiles = transformer, request, tiles
        self.noise = request.noise_schedule.noise
        self.seen: list[Area] = []

    def velocity(self, prompt: Conditioning, extra: Tensor | None = None, nets=()) -> Tensor:
        """At sigma 1, in all windows of the whole picture."""
        batch, _, height, width = self.noise.shape
        total = torch.zeros_like(self.noise)
        for area, weight in self.tiles.windows(height, width):
            part = area.cut(self.noise)
            if extra is not None:
                part = torch.cat([part, area.cut(extra)], dim=1)
            inputs = {
                "img": pack(part),
                "img_ids": image_ids(area.height, area.width),
                "txt": prompt.context.expand(batch, -1, -1),
                "txt_ids": text_ids(5),
                "timesteps": torch.ones(batch),
                "y": prompt.pooled.expand(batch, -1),
                "guidance": torch.full((batch,), 3.5),
            }
            control = [
                net(cond=pack(area.cut(standardise(cond))).expand(batch, -1, -1), **inputs)
                for net, cond in nets
            ]
            with torch.no_grad():
                out = self.transformer(**inputs, control=control)
            area.cut(total).add_(unpack(out, area.height, area.width) * weight)
        return total

    def picture(self, velocity: Tensor) -> Tensor:
        return self.noise - velocity


def first_picture(request: DrawRequest) -> Tensor:
    """What the model believes the picture to be at sigma 1, standardised."""
    pictures: list[Tensor] = []
    draw(OffloadRunner(None, CPU), [request], callback=lambda *about: pictures.append(about[2]))
    return pictures[0]


class TestWhatAWindowReads:
    @pytest.mark.parametrize("size", [(12, 8), (13, 17), (16, 20)])
    def test_a_prompt_as_a_picture_of_its_own(self, transformer, size):
        request = asked(transformer, *size, batch=2, tiles=TILES)
        hand = ByHand(transformer, request)
        expected = hand.picture(hand.velocity(text()))
        assert torch.allclose(first_picture(request), expected, atol=1e-5)
        assert not torch.allclose(first_picture(replace(request, tiles=None)), expected, atol=1e-2)

    def test_controls_are_cut(self, transformer):
        net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
        cond = numbers(1, 16, 13, 12)
        request = asked(transformer, 13, 12, tiles=TILES, controls=[Control(net, cond)])
        hand = ByHand(transformer, request)
        expected = hand.picture(hand.velocity(text(), nets=[(net, cond)]))
        assert torch.allclose(first_picture(request), expected, atol=1e-5)

    @pytest.mark.parametrize("channels", [128, 384])
    def test_wider_inputs_are_cut(self, channels):
        """Canny and Depth read 16 channels more, Fill 80."""
        config = dataclasses.replace(SMALL, in_channels=channels)
        model = tiny_models.flux_transformer(config).requires_grad_(False)
        picture, mask = numbers(1, 16, 12, 13), (numbers(1, 1, 96, 104) > 0).float()
        request = asked(model, 12, 13, tiles=TILES, positive=text(picture=picture, mask=mask))
        extra = standardise(picture)
        if channels == 384:
            inner = mask.reshape(1, 12, 8, 13, 8).permute(0, 2, 4, 1, 3).reshape(1, 64, 12, 13)
            extra = torch.cat([extra, inner], dim=1)
        hand = ByHand(model, request)
        assert torch.allclose(
            first_picture(request), hand.picture(hand.velocity(text(), extra)), atol=1e-5
        )

    @pytest.mark.parametrize("method", ["offset", "uxo", "index_timestep_zero"])
    def test_references_are_kept_and_begin_where_a_window_ends(self, transformer, method):
        """Each window equals the picture of its size that is drawn alone with its noise."""
        references = References((numbers(1, 16, 4, 6),), method)
        request = asked(transformer, 12, 8, tiles=TILES, positive=text(references=references))
        expected = torch.zeros(1, 16, 12, 8)
        for area, weight in TILES.windows(12, 8):
            alone = asked(transformer, 8, 8, positive=text(references=references))
            schedule = alone.noise_schedule._replace(noise=area.cut(request.noise_schedule.noise))
            object.__setattr__(alone, "noise_schedule", schedule)
            area.cut(expected).add_(first_picture(alone) * weight)
        assert torch.allclose(first_picture(request), expected, atol=1e-5)

    def test_a_region_is_split_by_itself_and_costs_nothing_elsewhere(self, transformer):
        calls = counted_calls(transformer)
        region = Region(area=(8, 8, 2, 3))
        alone = asked(transformer, 16, 16, positive=[text(1, region=region)])
        plain = drawn(alone)
        with calls:
            tiled = drawn(replace(alone, tiles=TILES))
        assert torch.equal(tiled, plain) and calls.count == STEPS
        wide = [text(), text(1, region=Region(area=(8, 12, 0, 4)))]
        with calls:
            drawn(asked(transformer, 16, 16, positive=wide, tiles=TILES))
        assert calls.count == STEPS * (9 + 2)

    def test_windows_where_nothing_counts_are_left_out(self, transformer):
        mask = torch.zeros(1, 16, 24)
        mask[:, :6, :6] = 1
        calls = counted_calls(transformer)
        with calls:
            drawn(
                asked(transformer, 16, 24, tiles=TILES, positive=[text(region=Region(mask=mask))])
            )
        assert calls.count == STEPS * 4  # windows from 0 and 4 on both axes
        kept = asked(transformer, 16, 24, tiles=TILES, mask=mask[None])
        with calls:
            some = drawn(kept)
        assert calls.count == STEPS * 4
        everywhere = drawn(replace(kept, mask=mask[None].clamp_min(1e-30)))
        assert torch.equal(some[..., :6, :6], everywhere[..., :6, :6])
        assert torch.allclose(some[..., 6:, :], kept.latents[..., 6:, :], atol=1e-5)

    def test_two_regions_are_weighed_as_untiled_ones(self, transformer):
        left, right = torch.zeros(1, 12, 12), torch.zeros(1, 12, 12)
        left[..., :7], right[..., 5:] = 1.0, 0.5
        prompts = [
            text(1, region=Region(mask=left)),
            text(2, region=Region(mask=right, strength=0.7)),
        ]
        request = asked(transformer, 12, 12, tiles=TILES, positive=prompts)
        hand = ByHand(transformer, request)
        a, b = (hand.picture(hand.velocity(prompt)) for prompt in prompts)
        expected = (a * left + b * right * 0.7) / (left + right * 0.7)
        assert torch.allclose(first_picture(request), expected, atol=1e-5)

    def test_attention_masks_are_cut_as_the_large_one_would_be(self):
        values = (numbers(1, 5 + 6, 5 + 6) > 0).float() * 3
        bias = AttentionBias(values, 2, 3)
        whole = torch.zeros(1, 5 + 42, 5 + 42)  # 13 x 12 latents: 7 x 6 tokens
        rows = F.interpolate(values[:, :, 5:].reshape(1, 11, 2, 3), (7, 6), mode="bilinear")
        wide = torch.cat([values[:, :, :5], rows.reshape(1, 11, 42)], dim=2)
        down = wide[:, 5:].permute(0, 2, 1).reshape(1, 47, 2, 3)
        down = F.interpolate(down, (7, 6), mode="bilinear").reshape(1, 47, 42).permute(0, 2, 1)
        whole = torch.cat([wide[:, :5], down], dim=1)
        area = Area(7, 8, 6, 2)
        inside = torch.arange(42).reshape(7, 6)[3:7, 1:5].flatten() + 5
        kept = torch.cat([torch.arange(5), inside])
        cut = bias_in(bias, 13, 12, area)
        assert (cut.rows, cut.columns) == (4, 4)
        assert torch.allclose(cut.values, whole[:, kept][:, :, kept], atol=1e-5)
        asked_for = bias_in(replace(bias, values=values > 1), 13, 12, area)
        assert asked_for.values.dtype == torch.bool

    def test_an_attention_mask_counts_in_every_window(self, transformer):
        """Nothing of the image sees the text: the text says nothing."""
        closed = torch.ones(1, 11, 11, dtype=torch.bool)
        closed[:, 5:, :5] = False
        bias = AttentionBias(closed, 2, 3)
        pictures = [
            first_picture(
                asked(transformer, 12, 12, tiles=TILES, positive=replace(p, attention=bias))
            )
            for p in (text(1), replace(text(2), pooled=text(1).pooled))
        ]
        assert torch.allclose(*pictures, atol=1e-5)
        opened = first_picture(asked(transformer, 12, 12, tiles=TILES, positive=text(1)))
        assert not torch.allclose(pictures[0], opened, atol=1e-3)


class counted_calls:  # noqa: N801  (a context, as contextlib has them)
    """Counts calls of a model inside."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.count = model, 0

    def __enter__(self) -> None:
        self.count = 0

        def add(*_) -> None:
            self.count += 1

        self.handle = self.model.register_forward_pre_hook(add)

    def __exit__(self, *_) -> None:
        self.handle.remove()


def everything(transformer) -> DrawRequest:
    """Regions, references, a control, a mask by steps and an opposite, of odd sides."""
    net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
    mask = torch.linspace(0, 1, 9)[None, None, :, None].expand(1, 1, 9, 13)
    references = References((numbers(1, 16, 4, 4),), "index_timestep_zero")
    return asked(
        transformer,
        9,
        13,
        batch=2,
        positive=[text(references=references), text(1, region=Region(area=(8, 9, 0, 2)))],
        negative=[text(2)],
        controls=[Control(net, numbers(1, 16, 9, 13), 0.7, end=0.8)],
        mask=mask,
        differential=0.8,
        settings={"cfg": 2.0, "steps": 2},
        tiles=replace(TILES, moving=True),
    )


class TestBits:
    def test_one_window_is_the_plain_run(self, transformer):
        for tiles in (Tiling(128, 32), replace(TILES, size=144, moving=True)):
            plain = replace(everything(transformer), tiles=None, latents=torch.zeros(2, 16, 9, 16))
            plain = replace(plain, controls=(), mask=None)
            assert torch.equal(drawn(replace(plain, tiles=tiles)), drawn(plain))
            assert replace(plain, tiles=tiles).work == plain.work

    def test_all_policies_draw_the_same_bits(self, transformer):
        request = everything(transformer)
        policies = [OffloadPolicy(mode) for mode in ("none", "component", "stream", "auto")]
        expected, *others = [drawn(request, policy) for policy in policies]
        assert expected.isfinite().all()
        assert all(torch.equal(expected, other) for other in others)
        assert not torch.equal(expected, drawn(replace(request, tiles=TILES)))

    def test_a_run_that_ends_between_two_windows_leaves_everything_as_it_was(self, transformer):
        request = everything(transformer)
        expected = drawn(request)

        calls: list[int] = []
        assert replace(request, between=lambda: calls.append(0)).work == request.work
        assert not calls, "nothing is drawn for a plan"

        def stop() -> None:
            calls.append(1)
            if len(calls) == 3:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            drawn(replace(request, between=stop), OffloadPolicy("stream"))
        assert len(calls) == 3 and transformer.precomputed is None
        assert torch.equal(drawn(request, OffloadPolicy("stream")), expected)

    def test_the_shift_by_size_goes_by_the_window(self, transformer):
        settings = {"shift": "resolution"}
        tiled = asked(transformer, 16, 16, tiles=TILES, settings=settings)
        window = asked(transformer, 8, 8, settings=settings)
        whole = asked(transformer, 16, 16, settings=settings)
        assert torch.equal(tiled.noise_schedule.sigmas, window.noise_schedule.sigmas)
        assert not torch.equal(tiled.noise_schedule.sigmas, whole.noise_schedule.sigmas)
        assert torch.equal(tiled.noise_schedule.noise, whole.noise_schedule.noise)


class TestMemory:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    def test_predicted_bytes_are_what_a_run_takes(self, transformer, sampler):
        """A picture so large that its latents are most of it."""
        request = asked(
            transformer,
            96,
            96,
            tiles=Tiling(256, 0),
            settings={"sampler": sampler, "steps": 3},
            mask=torch.ones(1, 1, 96, 96),
            positive=text(region=Region(mask=torch.ones(1, 96, 96))),
        )
        noise = request.noise_schedule.noise
        work, untiled = request.work, replace(request, tiles=None).work
        runner = OffloadRunner(card_policy("none"), CPU)
        runner.run("transformer", [transformer], lambda _: None, work)  # its weights are there now
        with LiveBytes() as counted:
            runner.run("transformer", [transformer], lambda _: sample(request), work)
        took = counted.peak + noise.nbytes  # which a card has a copy of
        assert work.activations == pytest.approx(took, rel=0.05)
        window = asked(transformer, 32, 32).work.activations
        assert window < work.activations < untiled.activations
