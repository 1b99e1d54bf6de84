"""Numbers of every kind, everywhere that one is taken, before anything runs."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from flux_core import Control, FluxPipeline, OffloadPolicy
from flux_core.bounds import check_number
from flux_core.sampling.conditioning import Conditioning
from flux_core.sampling.images import as_masks, as_pictures
from flux_core.sampling.run import DrawRequest, SamplingSettings
from flux_core.sampling.sigmas import check_sigmas
from flux_core.sampling.sizes import check_size
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
NONE = (math.nan, math.inf, -math.inf, "3", None, True, [1], 1 + 2j, np.zeros((5, 5)))
#: Whole numbers that no float holds.
HUGE = (10**400, -(10**400))
TRAINING = TrainConfig(data=(DataConfig(folder="d"),))


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    pipeline = FluxPipeline.from_pocket(policy="none")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("something ran")

    pipeline.transformer.forward = pipeline.text_encoders.encode = fail  # type: ignore[method-assign]
    return pipeline


class TestNumbers:
    @pytest.mark.parametrize("value", NONE)
    @pytest.mark.parametrize("whole", [True, False])
    def test_what_is_no_number_is_refused(self, value, whole):
        with pytest.raises(
            ValueError, match="x is .*, expected a (whole )?number, 0 to 9"
        ) as raised:
            check_number(value, "x", 0, 9, whole=whole)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 200

    @pytest.mark.parametrize(
        "value", [0, 9, 3.5, torch.tensor(3).item(), 1e-300, np.float32(2), np.int8(3)]
    )
    def test_what_is_one_passes(self, value):
        check_number(value, "x", 0, 9)

    @pytest.mark.parametrize("value", [-1e-9, 9.001, 10**30, -(2**70), *HUGE])
    def test_what_is_outside_is_refused(self, value):
        with pytest.raises(ValueError, match="expected 0 to 9"):
            check_number(value, "x", 0, 9)

    def test_one_that_python_does_not_write_is_refused_as_well(self):
        with pytest.raises(ValueError, match="x is a number of thousands of digits, expected 0"):
            check_number(10**5000, "x", 0, 9)

    def test_an_exact_fraction_is_no_number_for_torch(self):
        with pytest.raises(ValueError, match="expected a number"):
            check_number(Fraction(3, 2), "x", 0, 9)

    @pytest.mark.parametrize("seed", [np.int64(5), np.uint64(5), torch.tensor(5).numpy()[()]])
    def test_seeds_of_numpy_are_seeds(self, seed):
        assert type(SamplingSettings(seed=seed).seed) is int

    @pytest.mark.parametrize("value", [1.5, 2.0, "1"])
    def test_counts_are_whole(self, value):
        with pytest.raises(ValueError, match="expected a whole number"):
            check_number(value, "x", 0, whole=True)


class TestThePipeline:
    @pytest.mark.parametrize(
        "name, values",
        {
            "seed": (
                -1,
                2**64,
                1.5,
                [],
                [None],
                *(x for x in NONE if not isinstance(x, list)),
                *HUGE,
            ),
            "steps": (0, -1, 10**7, 1.5, *NONE, *HUGE),
            "cfg": (1e9, *NONE, *HUGE),
            "guidance": (-1.0, 1e9, math.nan, math.inf, "x", *HUGE),
            "denoise": (0.0, 1e-9, 1.01, -0.5, *NONE, *HUGE),
            "batch_size": (0, -1, 1.5, 10**9, *NONE, *HUGE),
            "width": (0, 8, 100, -64, 16_000_000, 64.0, "64", None, 16 * 10**400),
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
            ({"image": "picture.png"}, "image: picture.png: no such file"),
            ({"image": [torch.zeros(64, 64, 3), torch.zeros(32, 64, 3)]}, "several sizes"),
            ({"image": torch.zeros(40, 64, 3)}, "height is 40"),
            ({"mask": torch.ones(64, 64)}, "no image"),
            ({"condition_mask": torch.ones(64, 64)}, "there is none"),
            ({"condition": torch.zeros(64, 64, 3)}, "this model reads none"),
            ({"loras": [("none.safetensors", 1.0)]}, "no such file"),
            ({"sampler": "fast"}, "sampler is 'fast'"),
            ({"sampler": ["euler"]}, "sampler is ..euler"),
            ({"scheduler": ["simple"]}, "scheduler is ..simple"),
            ({"shift": {}}, "shift is"),
            ({"negative_prompt": None, "cfg": 2.0}, "negative_prompt is None"),
            ({"negative_prompt": ["a"], "cfg": 2.0}, "negative_prompt is ..a"),
            ({"loras": "a.safetensors"}, "loras is 'a.safetensors', expected a list"),
            ({"loras": ["a.safetensors"]}, "a.safetensors: no such file"),
            ({"loras": [(None, 1.0)]}, "loras has None"),
            ({"controls": 3}, "controls is 3"),
            ({"controls": [3]}, "controls has 3, expected a Control"),
            ({"image": []}, "image is a list"),
            ({"image": np.array([["a"]])}, "image is an array of <U1"),
            ({"image": torch.zeros(2, 2, 3, dtype=torch.complex64)}, "image is a tensor without"),
            ({"image": torch.zeros(2, 2, 3).to_sparse()}, "image is a tensor without"),
            ({"image": torch.zeros(2, 2, 3, device="meta")}, "image is a tensor without"),
        ],
    )
    def test_pictures_are_checked_before_anything_runs(self, pipeline, arguments, message):
        with pytest.raises(ValueError, match=message):
            pipeline("a red circle", **({"width": 64, "height": 64, "steps": 1} | arguments))

    def test_none_of_several_is_no_error_of_theirs(self, pipeline):
        with pytest.raises(AssertionError, match="something ran"):
            pipeline("a", width=64, height=64, steps=1, loras=None, controls=None)

    @pytest.mark.parametrize("device", ["nonsense", "cuda:x"])
    def test_devices_that_are_none(self, pipeline, device):
        with pytest.raises(ValueError, match="device is"):
            FluxPipeline(pipeline.transformer, pipeline.text_encoders, pipeline.vae, device=device)
        with pytest.raises(ValueError, match="mode is 'fast'"):
            FluxPipeline(pipeline.transformer, pipeline.text_encoders, pipeline.vae, policy="fast")


class TestPicturesOfAnyOrder:
    """What numpy and OpenCV make of pictures, which are the same pictures."""

    GREY = np.linspace(0, 1, 4 * 6 * 3).reshape(4, 6, 3)

    @pytest.mark.parametrize(
        "array",
        [
            np.ascontiguousarray(GREY[:, ::-1])[:, ::-1],
            np.asfortranarray(GREY),
            GREY.astype(">f4"),
            GREY.astype(np.longdouble),
            np.ascontiguousarray(GREY[::-1, :, ::-1])[::-1, :, ::-1],
        ],
    )
    def test_are_read(self, array):
        assert np.allclose(as_pictures(array, "image")[0], self.GREY, atol=1e-6)
        assert np.allclose(as_masks(array[..., 0], "mask")[0], self.GREY[..., 0], atol=1e-6)

    def test_bytes_backwards_are_bytes(self):
        array = (255 * self.GREY).astype(np.uint8)[:, :, ::-1]
        assert np.array_equal(np.rint(255 * as_pictures(array, "image")[0].numpy()), array)

    def test_masks_come_in_lists_as_pictures_do(self):
        masks = [Image.new("L", (6, 4), 255), torch.zeros(4, 6)]
        assert as_masks(masks, "mask").mean((1, 2)).tolist() == [1.0, 0.0]
        with pytest.raises(ValueError, match="masks of several sizes"):
            as_masks([torch.zeros(4, 6), torch.zeros(6, 4)], "mask")


@pytest.fixture(scope="module")
def request_of(pipeline):
    config = pipeline.transformer.config
    prompt = Conditioning(
        torch.zeros(1, 4, config.context_in_dim), torch.zeros(1, config.vec_in_dim)
    )
    return DrawRequest(pipeline.transformer, prompt, torch.zeros(1, 16, 8, 8))


class TestRequests:
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
