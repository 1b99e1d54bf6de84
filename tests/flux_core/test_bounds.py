"""Numbers of every kind, everywhere that one is taken, before anything runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from flux_core import Control, FluxPipeline, OffloadPolicy
from flux_core.bounds import check_number
from flux_core.sampling.conditioning import Conditioning
from flux_core.sampling.images import check_size
from flux_core.sampling.run import DrawRequest, SamplingSettings
from flux_core.sampling.sigmas import check_sigmas
from flux_core.train import ConfigError
from flux_core.train.config import (
    DataConfig,
    LoraConfig,
    ObjectiveConfig,
    OffloadConfig,
    OptimizerConfig,
    SamplesConfig,
    TrainConfig,
)

#: What is no number that anything can be done with.
NONE = (math.nan, math.inf, -math.inf, "3", None, True, [1], 1 + 2j)
TRAINING = TrainConfig(data=(DataConfig(folder="d"),))


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    pipeline = FluxPipeline.from_pocket(policy="none")

    def fail(*_: object) -> None:
        raise AssertionError("something ran")

    pipeline.transformer.forward = pipeline.text_encoders.encode = fail  # type: ignore[method-assign]
    return pipeline


class TestNumbers:
    @pytest.mark.parametrize("value", NONE)
    @pytest.mark.parametrize("whole", [True, False])
    def test_what_is_no_number_is_refused(self, value, whole):
        with pytest.raises(ValueError, match="x is .*, expected a (whole )?number, 0 to 9"):
            check_number(value, "x", 0, 9, whole=whole)

    @pytest.mark.parametrize("value", [0, 9, 3.5, torch.tensor(3).item(), 1e-300])
    def test_what_is_one_passes(self, value):
        check_number(value, "x", 0, 9)

    @pytest.mark.parametrize("value", [-1e-9, 9.001, 10**30, -(2**70)])
    def test_what_is_outside_is_refused(self, value):
        with pytest.raises(ValueError, match="expected 0 to 9"):
            check_number(value, "x", 0, 9)

    @pytest.mark.parametrize("value", [1.5, 2.0, "1"])
    def test_counts_are_whole(self, value):
        with pytest.raises(ValueError, match="expected a whole number"):
            check_number(value, "x", 0, whole=True)


class TestThePipeline:
    @pytest.mark.parametrize(
        "name, values",
        {
            "seed": (-1, 2**64, 1.5, *NONE),
            "steps": (0, -1, 10**7, 1.5, *NONE),
            "cfg": (1e9, *NONE),
            "guidance": (-1.0, 1e9, math.nan, math.inf, "x"),
            "denoise": (0.0, 1e-9, 1.01, -0.5, *NONE),
            "batch_size": (0, -1, 1.5, 10**9, *NONE),
            "width": (0, 8, 100, -64, 16_000_000, 64.0, "64", None),
            "height": (0, 8, 100, 2**40, math.nan),
        }.items(),
        ids=lambda x: x if isinstance(x, str) else "",
    )
    def test_bounds_are_checked_before_anything_runs(self, pipeline, name, values):
        for value in values:
            arguments = {"width": 64, "height": 64, "steps": 1} | {name: value}
            with pytest.raises(ValueError, match=f"{name}|tokens|seed"):
                pipeline("a red circle", **arguments)

    def test_a_picture_too_large_is_answered_with_what_it_would_take(self):
        with pytest.raises(ValueError, match=r"16000000x1024 pixels are 64000000 tokens.*32\.8 GB"):
            check_size(16_000_000, 1024)
        with pytest.raises(ValueError, match=r"4096 pictures of 2048x2048 .*34\.4 GB"):
            check_size(2048, 2048, 4096)
        check_size(8192, 8192)

    @pytest.mark.parametrize("prompts, batch", [(["a", "b"], 3), (["a"] * 3, 2), ([], 1)])
    def test_prompts_are_one_or_as_many_as_pictures(self, pipeline, prompts, batch):
        with pytest.raises(ValueError, match="prompt"):
            pipeline(prompts, width=64, height=64, steps=1, batch_size=batch)

    @pytest.mark.parametrize("prompt", [None, 3, [None], b"x", [["a"]]])
    def test_prompts_are_texts(self, pipeline, prompt):
        with pytest.raises((ValueError, TypeError), match="prompt|iterable"):
            pipeline(prompt, width=64, height=64, steps=1)

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"image": torch.zeros(3, 64, 64, 3), "batch_size": 2}, "image has 3 pictures"),
            ({"image": torch.full((64, 64, 3), math.nan)}, "image has values"),
            ({"image": 255 * torch.ones(64, 64, 3)}, "image has values from 255"),
            ({"image": torch.zeros(1, 3, 64, 64)}, "image has shape"),
            ({"image": "picture.png"}, "image is a str"),
            ({"image": [torch.zeros(64, 64, 3), torch.zeros(32, 64, 3)]}, "several sizes"),
            ({"image": torch.zeros(40, 64, 3)}, "height is 40"),
            ({"mask": torch.ones(64, 64)}, "no image"),
            ({"condition_mask": torch.ones(64, 64)}, "there is none"),
            ({"condition": torch.zeros(64, 64, 3)}, "this model reads none"),
            ({"loras": [("none.safetensors", 1.0)]}, "no such file"),
            ({"sampler": "fast"}, "sampler is 'fast'"),
        ],
    )
    def test_pictures_are_checked_before_anything_runs(self, pipeline, arguments, message):
        with pytest.raises(ValueError, match=message):
            pipeline("a red circle", **({"width": 64, "height": 64, "steps": 1} | arguments))

    @pytest.mark.parametrize("device", ["nonsense", "cuda:x"])
    def test_devices_that_are_none(self, pipeline, device):
        with pytest.raises(ValueError, match="device is"):
            FluxPipeline(pipeline.transformer, pipeline.text_encoders, pipeline.vae, device=device)
        with pytest.raises(ValueError, match="mode is 'fast'"):
            FluxPipeline(pipeline.transformer, pipeline.text_encoders, pipeline.vae, policy="fast")


class TestRequests:
    @pytest.fixture(scope="class")
    def request_of(self, pipeline):
        config = pipeline.transformer.config
        prompt = Conditioning(
            torch.zeros(1, 4, config.context_in_dim), torch.zeros(1, config.vec_in_dim)
        )
        return DrawRequest(pipeline.transformer, prompt, torch.zeros(1, 16, 8, 8))

    @pytest.mark.parametrize("strength", [math.nan, math.inf, 1e6, "x"])
    def test_strengths(self, request_of, strength):
        control = Control(None, torch.zeros(1, 16, 8, 8), strength)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="strength"):
            replace(request_of, controls=[control])
        with pytest.raises(ValueError, match="strength"):
            replace(request_of, loras=[(None, strength)])  # type: ignore[list-item]

    @pytest.mark.parametrize("span", [(0.6, 0.5), (-0.1, 1.0), (0.0, 1.5), (math.nan, 1.0)])
    def test_spans(self, request_of, span):
        control = Control(None, torch.zeros(1, 16, 8, 8), 1.0, *span)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="start|end"):
            replace(request_of, controls=[control])

    @pytest.mark.parametrize(
        "sigmas",
        [
            [0.1, 0.5],
            [1.0, 0.5, 0.7, 0.0],
            [1.0, math.nan, 0.0],
            [math.inf, 0.0],
            [1.0, -0.1],
            [1.0, 0.0, 0.0],
            [[1.0, 0.0]],
        ],
    )
    def test_sigmas_that_do_not_fall_from_noise(self, request_of, sigmas):
        settings = SamplingSettings(sigmas=torch.tensor(sigmas))
        with pytest.raises(ValueError, match="sigmas"):
            replace(request_of, settings=settings)

    @pytest.mark.parametrize("sigmas", [[], [0.7], [0.0], [1.0, 0.5, 0.5, 0.0], [0.9, 0.2]])
    def test_sigmas_that_are_none_or_repeat(self, sigmas):
        check_sigmas(torch.tensor(sigmas))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, 10**30])
@pytest.mark.parametrize(
    "kind, name",
    [
        (LoraConfig, "rank"),
        (LoraConfig, "alpha"),
        (LoraConfig, "ema"),
        (DataConfig, "repeats"),
        (DataConfig, "max_aspect"),
        (ObjectiveConfig, "scale"),
        (ObjectiveConfig, "guidance"),
        (ObjectiveConfig, "caption_dropout"),
        (OptimizerConfig, "learning_rate"),
        (OptimizerConfig, "weight_decay"),
        (SamplesConfig, "steps"),
        (SamplesConfig, "cfg"),
        (SamplesConfig, "seed"),
        (OffloadConfig, "vram_budget"),
        (TrainConfig, "steps"),
        (TrainConfig, "batch"),
        (TrainConfig, "seed"),
    ],
)
def test_settings_of_a_training_have_bounds(kind, name, value):
    base = {"folder": "d"} if kind is DataConfig else {}
    base = {"data": TRAINING.data} if kind is TrainConfig else base
    with pytest.raises(ConfigError, match=name):
        kind(**base | {name: value})


@pytest.mark.parametrize("name", ["vram_budget", "ram_budget", "slots"])
@pytest.mark.parametrize("value", [math.nan, -1, "8"])
def test_policies_have_bounds(name, value):
    with pytest.raises(ValueError, match=name):
        OffloadPolicy(**{name: value})
