"""The pipeline on the pocket model: policies, guidance, batches, starts, masks, controls."""

from __future__ import annotations

import logging

import pytest
import torch

from flux_core import (
    Control,
    FluxPipeline,
    IPAdapterPrompt,
    LoraRegion,
    LoraUse,
    OffloadPolicy,
    ReduxPrompt,
    load_controlnet,
    load_ip_adapter,
    load_lora,
    load_redux,
    load_vision_encoder,
)
from flux_core.offload.runner import OffloadRunner
from flux_core.pocket import pocket_file
from flux_core.sampling.guidance import GuidanceOptions, NormalizedAttentionGuidance
from flux_core.sampling.hires import Hires
from flux_core.sampling.images import to_pixels
from flux_core.sampling.latents import host_noise, image_ids, pack, unpack
from tests import adapter_files, tiny_models

SMALL = {"width": 64, "height": 48, "steps": 3}
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return FluxPipeline.from_pocket(device="cpu")


@pytest.fixture(scope="module")
def upscaler():
    return load_controlnet(pocket_file("controlnet", "_upscaler"))


def draw(pipeline, prompt=PROMPT, **options) -> torch.Tensor:
    return pipeline(prompt, **{**SMALL, **options}).images


def test_pictures_have_the_size_asked_for_and_the_seed_decides(pipeline):
    first = draw(pipeline, seed=3)
    assert first.shape == (1, 48, 64, 3)
    assert first.min() >= 0 and first.max() <= 1 and first.std() > 0
    assert torch.equal(first, draw(pipeline, seed=3))
    assert not torch.equal(first, draw(pipeline, seed=4))


@pytest.mark.parametrize("precision", ["bf16", "fp8_scaled"])
def test_policies_give_the_same_picture_to_the_bit(precision):
    pictures = {}
    for mode in ("none", "component"):
        opened = FluxPipeline.from_pocket(
            precision=precision, policy=OffloadPolicy(mode), device="cpu"
        )
        drawn = opened(PROMPT, negative_prompt="white", cfg=2.0, **SMALL)
        pictures[mode] = drawn.images
        assert list(drawn.report.parts) == ["text encoders", "transformer", "VAE decoder"]
        assert mode in str(drawn.report)
    assert torch.equal(pictures["none"], pictures["component"])


def test_component_policy_brings_parts_one_at_a_time_and_back():
    """The ``meta`` device stands for a card: a part is there inside the block and only there."""
    module = torch.nn.Linear(2, 2)
    own = dict(module.named_parameters())
    runner = OffloadRunner(OffloadPolicy("component"), "meta")
    with runner.hold("part", module):
        assert {p.device.type for p in module.parameters()} == {"meta"}
    assert all(p is own[name] for name, p in module.named_parameters())
    assert runner.report.parts["part"].size == 2 * 256  # each tensor at a multiple of 256


def test_component_policy_gives_memory_back_after_an_error():
    runner = OffloadRunner(OffloadPolicy("component"), "meta")
    module = torch.nn.Linear(2, 2)
    own = dict(module.named_parameters())
    with pytest.raises(RuntimeError, match="out of memory"), runner.hold("part", module):
        raise RuntimeError("out of memory")
    assert all(p is own[name] for name, p in module.named_parameters())


def test_cfg_of_one_leaves_the_negative_prompt_out(pipeline):
    plain = draw(pipeline)
    assert torch.equal(plain, draw(pipeline, negative_prompt="green", cfg=1.0))
    assert not torch.equal(plain, draw(pipeline, negative_prompt="green", cfg=2.5))


def test_a_batch_holds_different_pictures_the_first_that_of_a_batch_s_noise(pipeline):
    both = draw(pipeline, batch_size=2)
    assert both.shape[0] == 2 and not torch.equal(both[0], both[1])
    prompts = [PROMPT, "a green star on white"]
    mixed = draw(pipeline, prompts, batch_size=2)
    assert (mixed[0] - both[0]).abs().max() < 0.05
    assert (mixed[1] - both[1]).abs().max() > 0.05


def test_low_denoise_stays_near_the_picture(pipeline):
    image = torch.zeros(1, 48, 64, 3)
    image[..., 0] = 1.0
    near = draw(pipeline, image=image, denoise=0.1, steps=2)
    far = draw(pipeline, image=image, denoise=1.0, steps=2)
    assert near.shape == image.shape
    assert (near - image).abs().mean() < 0.5 * (far - image).abs().mean()


def test_a_mask_keeps_what_is_outside(pipeline):
    image = torch.zeros(1, 64, 64, 3)
    image[..., 1] = 0.6
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :32] = 1
    drawn = draw(pipeline, "a white square on black", image=image, mask=mask, height=64)
    encoded = pipeline.vae.encode(to_pixels(image))
    kept = (pipeline.vae.decode(encoded).float() / 2 + 0.5).movedim(1, -1)
    difference = (drawn - kept).abs()
    assert difference[:, :, 48:].mean() < 0.25 * difference[:, :, :24].mean()


def test_controls_change_the_picture_by_strength_and_span(pipeline, upscaler):
    cond = pipeline.vae.encode(torch.zeros(1, 3, 48, 64)).float()
    plain = draw(pipeline)
    assert torch.equal(plain, draw(pipeline, controls=[Control(upscaler, cond, strength=0.0)]))
    full = draw(pipeline, controls=[Control(upscaler, cond)])
    late = draw(pipeline, controls=[Control(upscaler, cond, start=0.9)])
    twice = draw(pipeline, controls=[Control(upscaler, cond, strength=0.5)] * 2)
    assert not torch.equal(plain, full) and not torch.equal(full, late)
    assert (twice - full).abs().mean() < 0.05
    with pytest.raises(ValueError, match="control picture is 32x32 pixels"):
        draw(pipeline, controls=[Control(upscaler, cond[..., :4, :4])])


@pytest.mark.parametrize("size", [(48, 64), (96, 128), (40, 100), (100, 40), (33, 51)])
def test_a_control_picture_of_another_size_is_scaled_as_the_host_does(size, pipeline, upscaler):
    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return pipeline.vae.encode(pixels).float()

    picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    # as the host's own: cut around the middle to the shape, then nearest-exact
    height, width = size
    top = left = 0
    if width / height > 64 / 48:
        left = round((width - width * (64 / 48) / (width / height)) / 2)
    else:
        top = round((height - height * (width / height) / (64 / 48)) / 2)
    cut = picture[..., top : height - top, left : width - left]
    fitted = torch.nn.functional.interpolate(cut, (48, 64), mode="nearest-exact")
    cond = encode(picture[..., : height // 16 * 16, : width // 16 * 16])
    given = Control(upscaler, cond, picture=picture, encode=encode)
    expected = draw(pipeline, controls=[Control(upscaler, encode(fitted))])
    assert torch.equal(draw(pipeline, controls=[given]), expected)


def test_several_prompts_are_as_many_pictures(pipeline):
    prompts = ["a red circle on white", "a blue square on yellow"]
    both = draw(pipeline, prompts, seed=2)
    assert len(both) == 2
    assert torch.equal(both, draw(pipeline, prompts, seed=2, batch_size=2))


def test_an_empty_prompt_works_and_a_long_one_is_read_by_t5_and_cut_for_clip(pipeline, caplog):
    assert draw(pipeline, "").isfinite().all()
    with caplog.at_level(logging.WARNING):
        drawn = draw(pipeline, "red circle " * 1000)
    assert drawn.isfinite().all()
    assert "CLIP-L reads the first 77 of 2002 tokens" in caplog.text and "T5" not in caplog.text
    assert "CLIP-L reads the first 77 of 2002 tokens" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 100}, "width is 100, expected a multiple of 16"),
        ({"height": 0}, "height is 0, expected a multiple of 16, at least 16"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "magic"}, "sampler is 'magic', expected one of euler"),
        ({"mask": torch.ones(1, 48, 64)}, "there is no image"),
    ],
)
def test_bad_settings_are_told_before_anything_is_drawn(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        draw(pipeline, **options)


def test_every_step_calls_back_and_an_interrupt_leaves_the_parts_usable(pipeline):
    seen = []

    def interrupt(step, total, denoised):
        seen.append((step, total, denoised.shape))
        if step == 1:
            raise KeyboardInterrupt

    before = draw(pipeline)
    with pytest.raises(KeyboardInterrupt):
        draw(pipeline, callback=interrupt)
    assert seen == [(0, 3, (1, 16, 6, 8)), (1, 3, (1, 16, 6, 8))]
    assert torch.equal(before, draw(pipeline))


def test_packing_has_an_inverse_and_positions_count_rows_and_columns():
    x = torch.arange(2 * 16 * 4 * 6.0).reshape(2, 16, 4, 6)
    tokens = pack(x)
    assert tokens.shape == (2, 6, 64)
    assert torch.equal(unpack(tokens, 4, 6), x)
    assert torch.equal(tokens[0, 0, :4], x[0, 0, :2, :2].flatten())
    assert image_ids(4, 6).tolist()[-1] == [0, 1, 2]


def test_noise_is_the_host_s():
    shape = (2, 16, 4, 4)
    torch.manual_seed(11)
    assert torch.equal(host_noise(shape, 11), torch.randn(shape))
    torch.manual_seed(11)
    draws = [torch.randn(1, 16, 4, 4) for _ in range(4)]
    assert torch.equal(host_noise(shape, 11, [3, 1]), torch.cat([draws[3], draws[1]]))


class TestControl:
    """What ``controls`` takes, of a picture."""

    def test_a_picture_is_fitted_to_what_is_drawn(self, pipeline, upscaler):
        picture = torch.rand(1, 96, 96, 3, generator=torch.Generator().manual_seed(4))
        led = pipeline.control(upscaler, picture, 0.8, end=0.9)
        assert led.cond.shape == (1, 16, 12, 12) and (led.strength, led.end) == (0.8, 0.9)
        plain, by_control = draw(pipeline), draw(pipeline, controls=[led])
        assert by_control.shape == plain.shape and not torch.equal(by_control, plain)
        whole = pipeline.control(upscaler, picture.movedim(-1, 1).mul(255).byte().movedim(1, -1))
        assert whole.cond.shape == led.cond.shape, "bytes are pictures too"
        odd = pipeline.control(upscaler, picture[:, :90, :70])
        assert draw(pipeline, controls=[odd]).shape == plain.shape

    @pytest.mark.parametrize("shape", [(1, 64, 64, 3), (1, 3, 64, 64), (16, 8, 8)])
    def test_what_is_no_condition_is_named(self, shape, pipeline, upscaler):
        with pytest.raises(ValueError, match=r"reads raw VAE latents .*FluxPipeline\.control"):
            draw(pipeline, controls=[Control(upscaler, torch.zeros(shape))])

    def test_what_is_out_of_range_is_refused(self, pipeline, upscaler):
        picture = torch.zeros(1, 64, 64, 3)
        for options, message in (
            ({"start": 0.9, "end": 0.1}, "start is 0.9"),
            ({"mask": torch.ones(1, 1, 8, 8)}, "read by ControlNets for inpainting"),
        ):
            with pytest.raises(ValueError, match=message):
                pipeline.control(upscaler, picture, **options)
        with pytest.raises(ValueError, match="expected a FLUX.1 ControlNet"):
            pipeline.control(pipeline.vae, picture)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_named():
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ValueError, match="torch sees no card"):
            FluxPipeline.from_pocket(device=device)


class TestBeforeAnythingIsComputed:
    """What a request refuses whatever the words are is refused before they are encoded."""

    @pytest.fixture
    def nothing_runs(self, monkeypatch):
        def never(*_: object, **__: object) -> None:
            raise AssertionError("something was computed")

        monkeypatch.setattr("flux_core.pipeline.FluxPipeline._encode", never)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"guidance_options": GuidanceOptions(zero_steps=9), "steps": 4}, "zero_steps"),
            ({"differential": 1.0}, "differential says how a mask is read"),
            (
                {
                    "reference": torch.rand(1, 32, 32, 3),
                    "reference_size": "own",
                    "reference_attention": "self",
                    "guidance_options": GuidanceOptions(nag=NormalizedAttentionGuidance()),
                },
                "drawn without NAG",
            ),
            (
                {
                    "guidance_options": GuidanceOptions(zero_steps=3),
                    "steps": 8,
                    "cfg": 2.0,
                    "hires": Hires(steps=2),
                },
                "zero_steps is 3, expected fewer than the 2 steps",
            ),
        ],
    )
    def test_of_options(self, options, message, nothing_runs, pipeline):
        with pytest.raises(ValueError, match=message):
            pipeline("a", width=64, height=64, **options)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"grid": -3}, "the grid of a picture's tokens is -3"),
            ({"grid": 99}, "the grid of a picture's tokens is 99"),
            ({"weights": [1.0, 2.0, 3.0]}, "3 weights for 1 pictures"),
            ({"mask": torch.zeros(1, 8, 8)}, "covers nothing"),
            ({"mask": "abc"}, "a picture's mask"),
            ({"crop": "x"}, "crop is 'x'"),
            ({"image": torch.zeros(1, 2, 3, 4, 5)}, "the picture of an image prompt"),
        ],
    )
    def test_of_pictures_in_the_prompt(self, options, message, nothing_runs, pipeline):
        redux = load_redux(pocket_file("style_models", "_redux"))
        encoder = load_vision_encoder(pocket_file("clip_vision", "_siglip"))
        options = {"image": torch.zeros(1, 32, 32, 3)} | options
        with pytest.raises(ValueError, match=message):
            prompts = [ReduxPrompt(redux, encoder, **options)]
            pipeline("a", width=64, height=64, image_prompts=prompts)

    def test_of_what_an_adapter_is_shown(self, nothing_runs, pipeline, tmp_path):
        config = pipeline.transformer.config
        file = adapter_files.widened(
            adapter_files.xlabs(config.depth), config.context_in_dim, config.hidden_size
        )
        adapter = load_ip_adapter(tiny_models.save(file, tmp_path / "a.safetensors"))
        seen_by = adapter_files.host_vision(adapter_files.clip_vision(), tmp_path / "c.safetensors")
        encoder = load_vision_encoder(seen_by)
        prompt = IPAdapterPrompt(adapter, encoder, torch.zeros(1, 32, 32, 3), negative_image="x")
        with pytest.raises(ValueError, match="the picture of an image prompt"):
            pipeline("a", width=64, height=64, image_prompts=[prompt])

    @pytest.mark.parametrize("hires", [False, True])
    def test_of_controls_of_another_size(self, hires, nothing_runs, pipeline, upscaler):
        size = 8 if hires else 4
        control = Control(upscaler, torch.zeros(1, 16, size, size))
        with pytest.raises(ValueError, match=f"the control picture is {8 * size}x{8 * size} pix"):
            options = {"hires": Hires(2.0)} if hires else {}
            pipeline("a", width=64, height=64, controls=[control], **options)

    def test_of_a_reference_where_a_lora_reads_beside(self, nothing_runs, pipeline, tmp_path):
        hidden = pipeline.transformer.img_in.out_features
        for width, message in ((128, "is it meant as condition"), (100, "100 packed channels")):
            file = {
                "img_in.lora_A.weight": torch.ones(1, width),
                "img_in.lora_B.weight": torch.ones(hidden, 1),
            }
            path = tiny_models.save(file, tmp_path / f"{width}.safetensors")
            with pytest.raises(ValueError, match=message):
                reference = {"reference": torch.rand(1, 32, 32, 3), "reference_size": "own"}
                pipeline("a", width=64, height=64, loras=[(path, 1.0)], **reference)

    def test_of_masks_for_another_batch(self, nothing_runs, pipeline, tmp_path):
        layer = pipeline.transformer.double_blocks[0].img_attn.proj
        file = {
            "double_blocks.0.img_attn.proj.lora_A.weight": torch.ones(1, layer.in_features),
            "double_blocks.0.img_attn.proj.lora_B.weight": torch.ones(layer.out_features, 1),
        }
        lora = load_lora(tiny_models.save(file, tmp_path / "lora.safetensors"))
        use = LoraUse(lora, 1.0, region=LoraRegion(torch.ones(3, 8, 8)))
        with pytest.raises(ValueError, match="mask has 3 rows, the batch 2"):
            pipeline(["a", "b"], width=64, height=64, loras=[use])
