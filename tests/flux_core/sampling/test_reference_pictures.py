"""References' sizes and latents; drawing with them against diffusers' Kontext pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from flux_core import Conditioning, FluxPipeline, FluxTransformer, load_transformer, load_vae
from flux_core.models.config import VAEConfig
from flux_core.models.vae import AutoEncoder
from flux_core.offload import OffloadRunner
from flux_core.sampling.latents import image_ids, pack, standardise, text_ids, unpack
from flux_core.sampling.reference_pictures import (
    PREFERRED_SIZES,
    as_references,
    encode_references,
    lanczos,
    preferred_size,
    sized_reference,
)
from flux_core.sampling.run import SamplingSettings
from tests import tiny_models

STEPS, CFG, GUIDANCE = 3, 2.0, 2.5


def picture(height: int, width: int, seed: int = 0, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (batch, height, width, 3), generator=generator)
    return codes.float() / 255


class TestSizes:
    @pytest.mark.parametrize(
        ("height", "width", "expected"),
        [
            (512, 512, (1024, 1024)),
            (100, 1000, (672, 1568)),
            (1000, 100, (1568, 672)),
            (1080, 1920, (752, 1392)),
            (1600, 1200, (1184, 880)),
        ],
    )
    def test_the_nearest_shape_is_taken(self, height, width, expected):
        assert preferred_size(height, width) == expected

    def test_the_list_is_diffusers(self):
        from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

        assert list(PREFERRED_SIZES) == PREFERRED_KONTEXT_RESOLUTIONS
        assert all(w % 16 == h % 16 == 0 for w, h in PREFERRED_SIZES)

    @pytest.mark.parametrize(("height", "width"), [(30, 40), (40, 30), (96, 64)])
    def test_scaling_cuts_to_the_shape_and_goes_through_bytes(self, height, width):
        wide = torch.rand(2, height, width, 3, generator=torch.Generator().manual_seed(1))
        scaled = lanczos(wide, 32, 48)
        for row, result in zip(wide, scaled, strict=True):
            codes = (row.numpy() * 255).astype(np.uint8)
            if width / height > 48 / 32:
                side = round((width - height * 48 / 32) / 2)
                codes = codes[:, side : width - side]
            else:
                side = round((height - width * 32 / 48) / 2)
                codes = codes[side : height - side]
            whole = Image.fromarray(np.ascontiguousarray(codes))
            expected = np.asarray(whole.resize((48, 32), Image.Resampling.LANCZOS))
            assert np.array_equal((result.numpy() * 255).round(), expected)

    def test_choices(self):
        tall = picture(40, 70)
        own = sized_reference(tall, "own")
        assert own.shape == (1, 32, 64, 3) and torch.equal(own, tall[:, 4:36, 3:67])
        assert sized_reference(tall, "drawn", (48, 32)).shape == (1, 48, 32, 3)
        assert sized_reference(tall, "preferred").shape == (1, 800, 1328, 3)

    def test_what_is_wrong_is_refused(self):
        with pytest.raises(ValueError, match="reference_size is 'large', expected one of pref"):
            sized_reference(picture(32, 32), "large")
        with pytest.raises(ValueError, match="a reference is 8x32 pixels, expected 16x16 at least"):
            sized_reference(picture(32, 8), "own")
        with pytest.raises(ValueError, match="empty list"):
            as_references([], 1, "own")
        with pytest.raises(ValueError, match="reference has 3 pictures, the batch 2"):
            as_references([picture(32, 32), picture(32, 32, batch=3)], 2, "own")
        with pytest.raises(ValueError, match="reference: cat.png: no such file"):
            as_references(["cat.png"], 1, "own")


@pytest.fixture(scope="module")
def theirs() -> dict[str, nn.Module]:
    vae = tiny_models.diffusers_vae()
    vae.register_to_config(shift_factor=VAEConfig().shift_factor)  # type: ignore[operator]
    vae.register_to_config(scaling_factor=VAEConfig().scale_factor)  # type: ignore[operator]
    return {"transformer": tiny_models.diffusers_transformer(), "vae": vae}


class Pipeline(FluxPipeline):
    """The pipeline with prompts that are known already."""

    prompts: tuple[Conditioning, Conditioning]

    def _encode(self, runner, prompts, negative_prompt, cfg, guidance, loras):
        return self.prompts if cfg != 1 else (self.prompts[0], None)

    def _loras(self, loras):
        return []


def conditioning(seed: int, batch: int) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning(
        torch.randn(batch, 6, tiny_models.CONTEXT, generator=generator),
        torch.randn(batch, tiny_models.POOLED, generator=generator),
        GUIDANCE,
    )


@pytest.fixture
def ours(theirs, tmp_path) -> Pipeline:
    files = {
        name: tiny_models.save(model.state_dict(), tmp_path / f"{name}.safetensors")
        for name, model in theirs.items()
    }
    transformer = load_transformer(files["transformer"], precision="fp32")
    vae = load_vae(files["vae"], dtype=torch.float32)
    return Pipeline(transformer, nn.Module(), vae, policy="none", device="cpu")


def of_diffusers(
    theirs, prompts, schedule, image: Tensor, height: int, width: int, cfg: float
) -> Tensor:
    """Latents (B, 16, h, w) by diffusers' own pipeline, of our noise and sigmas."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline

    pipeline = FluxKontextPipeline(
        FlowMatchEulerDiscreteScheduler(shift=1.0),
        theirs["vae"],
        None,
        None,
        None,
        None,
        theirs["transformer"],
    )
    pipeline.set_progress_bar_config(disable=True)
    positive, negative = prompts
    packed = pipeline(
        image=image.movedim(-1, 1),
        prompt_embeds=positive.context,
        pooled_prompt_embeds=positive.pooled,
        negative_prompt_embeds=negative.context if cfg > 1 else None,
        negative_pooled_prompt_embeds=negative.pooled if cfg > 1 else None,
        true_cfg_scale=cfg,
        guidance_scale=GUIDANCE,
        height=height,
        width=width,
        max_area=height * width,
        sigmas=schedule.sigmas[:-1].tolist(),
        num_inference_steps=STEPS,
        latents=pack(schedule.noise),
        output_type="latent",
        _auto_resize=False,
    ).images
    return unpack(packed, height // 8, width // 8)


class TestAgainstDiffusers:
    @pytest.mark.parametrize(("batch", "cfg"), [(1, 1.0), (2, CFG)])
    def test_a_reference_of_another_size(self, theirs, ours, batch, cfg):
        height, width, seen = 64, 48, []
        ours.prompts = (conditioning(1, batch), conditioning(2, batch))
        reference = picture(48, 80, batch=batch)
        settings = SamplingSettings(seed=5, steps=STEPS, shift="resolution")
        schedule = settings.noise_schedule(ours.transformer, (batch, 16, height // 8, width // 8))
        ours(
            ["a"] * batch,
            cfg=cfg,
            height=height,
            width=width,
            seed=5,
            steps=STEPS,
            shift="resolution",
            reference=reference,
            reference_size="own",
            callback=lambda step, steps, denoised: seen.append(denoised),
        )
        expected = of_diffusers(theirs, ours.prompts, schedule, reference, height, width, cfg)
        assert tiny_models.relative(seen[-1], expected) < 1e-5

    @pytest.mark.parametrize("method", ["offset", "index", "uxo"])
    def test_several_by_diffusers_transformer(self, theirs, ours, method):
        """diffusers' pipeline takes one: its transformer, given the tokens of two by hand."""
        first, second = picture(32, 64, 1), picture(48, 32, 2)
        positive = conditioning(1, 1)
        ours.prompts = (positive, positive)
        seen: list[Tensor] = []
        settings = SamplingSettings(seed=5, steps=2)
        schedule = settings.noise_schedule(ours.transformer, (1, 16, 4, 6))
        ours(
            "a",
            height=32,
            width=48,
            seed=5,
            steps=2,
            reference=[first, second],
            reference_method=method,
            reference_size="own",
            callback=lambda step, steps, denoised: seen.append(denoised),
        )
        encoded = [
            theirs["vae"].encode(each.movedim(-1, 1) * 2 - 1).latent_dist.mode()
            for each in (first, second)
        ]
        starts = {  # rows and columns of tokens: pictures of 2x4 and 3x2 tokens, drawn 2x3
            "offset": ((1, 0, 0), (1, 2, 0)),
            "index": ((1, 0, 0), (2, 0, 0)),
            "uxo": ((0, 2, 3), (0, 4, 7)),
        }[method]
        ids = [image_ids(4, 6)]
        for z, start in zip(encoded, starts, strict=True):
            ids.append(image_ids(z.shape[-2], z.shape[-1]) + torch.tensor(start))
        behind = [pack(standardise(z)) for z in encoded]
        x = schedule.noise
        for sigma, following in zip(schedule.sigmas[:-1], schedule.sigmas[1:], strict=True):
            out = theirs["transformer"](
                hidden_states=torch.cat([pack(x), *behind], dim=1),
                timestep=sigma[None],
                guidance=torch.full((1,), GUIDANCE),
                pooled_projections=positive.pooled,
                encoder_hidden_states=positive.context,
                txt_ids=text_ids(6),
                img_ids=torch.cat(ids),
            ).sample
            x = x + (following - sigma) * unpack(out[:, :6], 4, 6)
        assert tiny_models.relative(seen[-1], x) < 1e-5


def test_pictures_are_encoded_together_and_alike(ours):
    runner = OffloadRunner(None, "cpu")
    pictures = [picture(32, 48), picture(64, 32, 1, batch=2)]
    encoded = encode_references(runner, ours.vae, pictures)
    assert [tuple(z.shape) for z in encoded] == [(1, 16, 4, 6), (2, 16, 8, 4)]
    alone = [encode_references(OffloadRunner(None, "cpu"), ours.vae, [p])[0] for p in pictures]
    assert all(torch.equal(a, b) for a, b in zip(encoded, alone, strict=True))
    assert list(runner.report.parts) == ["VAE encoder"]
    assert isinstance(ours.vae, AutoEncoder) and isinstance(ours.transformer, FluxTransformer)


def test_a_model_with_a_wider_input_refuses_references(ours):
    from dataclasses import replace

    fill = tiny_models.flux_transformer(replace(tiny_models.DEV, in_channels=384))
    with pytest.raises(ValueError, match="is it meant as condition"):
        Pipeline(fill, nn.Module(), ours.vae, policy="none", device="cpu")(
            "a", height=32, width=32, reference=picture(32, 32)
        )
