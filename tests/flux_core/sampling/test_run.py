"""The one way to draw: what a request says counts for everybody who draws."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from flux_core import Conditioning, Control, FluxControlNet, FluxTransformer, OffloadPolicy
from flux_core.calibration.second_moments import record_second_moments, record_second_moments_of_all
from flux_core.calibration.sensitivity import measure_sensitivity
from flux_core.lora import Lora, load_lora
from flux_core.offload import OffloadRunner
from flux_core.sampling.conditioning import Region
from flux_core.sampling.references import References
from flux_core.sampling.run import DrawRequest, SamplingSettings, draw, while_drawing
from tests import tiny_models

CPU = torch.device("cpu")
POLICIES = (OffloadPolicy("component"), OffloadPolicy("stream"))


@pytest.fixture
def transformer() -> FluxTransformer:
    return tiny_models.flux_transformer(tiny_models.TWO_OF_EACH).requires_grad_(False)


@pytest.fixture
def lora(transformer, tmp_path) -> Lora:
    """A LoRA for every layer of the blocks."""
    generator = torch.Generator().manual_seed(1)
    file = {}
    for name, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear) and "_blocks" in name:
            down = torch.randn(4, layer.in_features, generator=generator)
            up = torch.randn(layer.out_features, 4, generator=generator)
            file |= {f"{name}.lora_A.weight": 0.1 * down, f"{name}.lora_B.weight": 0.1 * up}
    return load_lora(tiny_models.save(file, tmp_path / "lora.safetensors"))


def conditioning(seed: int = 0) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(1, 5, tiny_models.CONTEXT, generator=generator),
        torch.randn(1, tiny_models.POOLED, generator=generator),
    )


def request(transformer: FluxTransformer, seed: int = 0, **options) -> DrawRequest:
    settings = SamplingSettings(seed=seed, steps=2)
    return DrawRequest(
        transformer, conditioning(seed), torch.zeros(1, 16, 4, 6), settings, **options
    )


def drawn(*requests: DrawRequest, policy: OffloadPolicy = POLICIES[0]) -> list[Tensor]:
    return draw(OffloadRunner(policy, CPU), requests)


class TestDrawing:
    def test_requests_drawn_together_equal_those_drawn_apart(self, transformer):
        requests = [request(transformer, seed) for seed in range(3)]
        apart = [drawn(one)[0] for one in requests]
        assert not torch.equal(apart[0], apart[1])
        for policy in POLICIES:
            together = drawn(*requests, policy=policy)
            assert all(torch.equal(a, b) for a, b in zip(apart, together, strict=True))

    def test_steps_are_counted_over_all_requests(self, transformer):
        seen: list[tuple[int, int]] = []
        requests = [request(transformer, seed) for seed in range(2)]
        runner = OffloadRunner(None, CPU)
        draw(runner, requests, callback=lambda step, total, _: seen.append((step, total)))
        assert seen == [(0, 4), (1, 4), (2, 4), (3, 4)]
        assert list(runner.report.parts) == ["transformer"]

    def test_a_control_and_its_strength_count(self, transformer):
        net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
        picture = torch.ones(1, 16, 4, 6)
        strengths = (0.0, 0.5, 1.0)
        latents = [
            drawn(request(transformer, controls=[Control(net, picture, strength)]))[0]
            for strength in strengths
        ]
        assert torch.equal(latents[0], drawn(request(transformer))[0])
        assert not torch.equal(latents[1], latents[2])

    def test_sigmas_stand_in_the_place_of_steps(self, transformer):
        plain = request(transformer)
        settings = dataclasses.replace(
            plain.settings, steps=9, sigmas=plain.noise_schedule.sigmas.clone()
        )
        given = dataclasses.replace(plain, settings=settings)
        assert given.steps == plain.steps == 2
        assert torch.equal(drawn(given)[0], drawn(plain)[0])

    def test_unlike_requests_are_not_drawn_together(self, transformer, lora):
        other = request(transformer, loras=[(lora, 1.0)])
        with pytest.raises(ValueError, match="the same model, controls and LoRAs"):
            drawn(request(transformer), other)

    def test_what_is_wrong_is_told_before_anything_runs(self, transformer):
        for options, message in (
            ({"sampler": "ddim"}, "sampler is 'ddim', expected one of euler"),
            ({"scheduler": "karras"}, "scheduler is 'karras'"),
            ({"shift": "none"}, "shift is 'none'"),
            ({"steps": 0}, "steps is 0"),
            ({"denoise": 0.0}, "denoise is 0.0"),
        ):
            with pytest.raises(ValueError, match=message):
                SamplingSettings(**options)
        with pytest.raises(ValueError, match="positive is empty"):
            DrawRequest(transformer, [], torch.zeros(1, 16, 4, 4))


def everything() -> dict[str, list[Conditioning]]:
    """Two prompts by region, one of them with references, and an opposite."""
    generator = torch.Generator().manual_seed(4)
    references = References((torch.randn(1, 16, 4, 4, generator=generator),), "index_timestep_zero")
    first = replace(conditioning(1), references=references, end=0.6)
    second = replace(conditioning(2), region=Region(area=(4, 4, 0, 2), strength=0.7))
    mask = torch.zeros(1, 8, 8)
    mask[:, :4] = 1
    third = replace(conditioning(3), region=Region(mask=mask), guidance=None)
    background = replace(conditioning(4), region=Region(background=True))
    return {"positive": [first, second, third, background], "negative": [conditioning(5)]}


class TestSeveralPrompts:
    @pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.mode)
    def test_all_policies_draw_the_same_bits(self, transformer, policy):
        asked = DrawRequest(
            transformer,
            latents=torch.zeros(2, 16, 7, 9),
            settings=SamplingSettings(steps=3, cfg=2.0),
            **everything(),
        )
        (expected,) = drawn(asked)
        assert expected.shape == (2, 16, 7, 9) and expected.isfinite().all()
        assert torch.equal(drawn(asked, policy=policy)[0], expected)

    @pytest.mark.parametrize("left_out", range(4))
    def test_each_of_them_counts(self, transformer, left_out):
        prompts = everything()
        (whole,) = drawn(asked := self.asked(transformer, prompts["positive"]))
        fewer = [p for i, p in enumerate(prompts["positive"]) if i != left_out]
        assert not torch.allclose(drawn(self.asked(transformer, fewer))[0], whole)
        assert torch.equal(drawn(asked)[0], whole)

    def asked(self, transformer, positive) -> DrawRequest:
        latents = torch.zeros(1, 16, 4, 6)
        return DrawRequest(transformer, positive, latents, SamplingSettings(steps=3))

    def test_prompts_that_are_over_leave_nothing(self, transformer):
        over = replace(conditioning(), end=0.3)
        (latents,) = drawn(self.asked(transformer, [over]))
        assert latents.isfinite().all()


class TestWhatALoraChanges:
    """Whoever draws hears the LoRA: the picture, the second moments, the measured errors."""

    @pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.mode)
    def test_calibrating_and_measuring_hear_it(self, transformer, lora, policy):
        runner = OffloadRunner(policy, CPU)
        plain, changed = request(transformer), request(transformer, loras=[(lora, 1.0)])

        def observed(one: DrawRequest) -> tuple[dict[str, Tensor], dict[str, float]]:
            of_each = while_drawing(
                runner, [one], lambda draw_all: record_second_moments(transformer, draw_all)
            )
            layers = while_drawing(
                runner, [one], lambda draw_all: measure_sensitivity(transformer, draw_all)
            )
            return of_each, {name: layer.errors["int8"] for name, layer in layers.items()}

        before, errors_before = observed(plain)
        with_lora, errors_with_lora = observed(changed)
        after, errors_after = observed(plain)
        assert set(before) == set(with_lora) == set(errors_with_lora)
        name = "single_blocks.1.linear2"  # behind all that the LoRA changes
        assert not torch.equal(before[name], with_lora[name])
        assert errors_before[name] != errors_with_lora[name]
        assert errors_after == errors_before
        assert all(torch.equal(before[layer], after[layer]) for layer in before)

    def test_a_control_net_beside_hears_it_too(self, transformer, lora):
        net = tiny_models.randomise(FluxControlNet(tiny_models.UPSCALER), seed=2)
        controls = [Control(net, torch.ones(1, 16, 4, 6))]
        of_each = [
            while_drawing(
                OffloadRunner(None, CPU),
                [request(transformer, controls=controls, loras=loras)],
                lambda draw_all: record_second_moments_of_all([transformer, net], draw_all),
            )
            for loras in ((), [(lora, 1.0)])
        ]
        name = "double_blocks.1.img_mlp.2"
        assert all(len(of_module) == 2 and name in of_module[1] for of_module in of_each)
        assert not torch.equal(of_each[0][1][name], of_each[1][1][name])


def test_nobody_else_makes_a_noise_schedule_or_runs_a_sampler():
    """Callers build a request; what a run is put together of stands in four files: for one device
    and for several, the run and what it takes."""
    from pathlib import Path

    run_file = Path(inspect.getfile(draw))
    names = ("run", "request", "parallel", "parallel_work")
    own = {run_file.with_name(f"{name}.py") for name in names}
    root = run_file.parents[2]
    folders = ("flux_core", "nodes", "cli")
    elsewhere = [
        path.relative_to(root).as_posix()
        for folder in folders
        for path in sorted((root / folder).rglob("*.py"))
        if path not in own
        and any(word in path.read_text(encoding="utf-8") for word in ("SAMPLERS[", "Denoiser("))
    ]
    assert not elsewhere
