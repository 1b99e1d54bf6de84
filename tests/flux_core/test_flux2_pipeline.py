"""FLUX.2 from prompt to picture: our pipeline against diffusers', of the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flux_core import (
    Control,
    FluxPipeline,
    OffloadPolicy,
    load_language_encoders,
    load_transformer,
    load_vae,
)
from flux_core.models.families import FLUX2_DEV, FLUX2_KLEIN, empirical_mu
from flux_core.sampling.latents import host_noise
from flux_core.sampling.run import SamplingSettings
from flux_core.sampling.sigmas import table_for
from tests import flux2_models, tiny_models

SIDES = {"height": 64, "width": 96}


def their_transformer(guidance: bool, context: int) -> Any:
    from diffusers import Flux2Transformer2DModel

    model = Flux2Transformer2DModel(
        num_layers=1,
        num_single_layers=2,
        num_attention_heads=1,
        joint_attention_dim=context,
        guidance_embeds=guidance,
    )
    return tiny_models.randomise(model)


def their_scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def their_parts(dev: bool) -> dict[str, Any]:
    """What diffusers' pipeline is made of."""
    return {
        "scheduler": their_scheduler(),
        "vae": flux2_models.diffusers_vae(),
        "text_encoder": flux2_models.mistral_model() if dev else flux2_models.qwen_model(),
        "tokenizer": flux2_models.mistral_tokenizer() if dev else flux2_models.qwen_tokenizer(),
        "transformer": their_transformer(dev, 3 * 288 if dev else 3 * 32),
    }


def save_parts(parts: dict[str, Any], folder: Path) -> Path:
    """A folder as Hugging Face has it."""
    for name in ("transformer", "vae", "text_encoder"):
        file = folder / name / "model.safetensors"
        tiny_models.save(parts[name].state_dict(), file)
    parts["tokenizer"].save_pretrained(folder / "tokenizer")
    return folder


def open_parts(folder: Path, precision: str = "fp32", **options: Any) -> FluxPipeline:
    return FluxPipeline(
        load_transformer(folder / "transformer", precision=precision),
        load_language_encoders(folder / "text_encoder", precision=precision),
        load_vae(folder / "vae", dtype=torch.float32),
        **options,
    )


@pytest.fixture(scope="module")
def klein(tmp_path_factory) -> tuple[dict[str, Any], Path]:
    parts = their_parts(dev=False)
    return parts, save_parts(parts, tmp_path_factory.mktemp("klein"))


def their_picture(pipeline: Any, **options: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    noise = host_noise((1, 128, 4, 6), 7)
    result = pipeline(
        prompt="a cat", latents=noise, num_inference_steps=4, output_type="pt", **SIDES, **options
    )
    return result.images.movedim(1, -1)


def our_picture(pipeline: FluxPipeline, **options: Any) -> torch.Tensor:
    """At the same sigmas: four steps lie in the table exactly."""
    return pipeline("a cat", seed=7, steps=4, shift="resolution", **SIDES, **options).images


def test_klein_draws_what_diffusers_draws(klein):
    from diffusers import Flux2KleinPipeline

    parts, folder = klein
    theirs = Flux2KleinPipeline(**parts, is_distilled=True)
    expected = their_picture(theirs, guidance_scale=1.0)
    ours = open_parts(folder)
    assert ours.transformer.family is FLUX2_KLEIN
    assert tiny_models.relative(our_picture(ours), expected) < 1e-5


def test_klein_base_draws_with_true_guidance(klein):
    from diffusers import Flux2KleinPipeline

    parts, folder = klein
    expected = their_picture(Flux2KleinPipeline(**parts), guidance_scale=3.0)
    assert tiny_models.relative(our_picture(open_parts(folder), cfg=3.0), expected) < 1e-5


def test_dev_draws_what_diffusers_draws(tmp_path):
    from diffusers import Flux2Pipeline

    parts = their_parts(dev=True)
    ours = open_parts(save_parts(parts, tmp_path))
    assert ours.transformer.family is FLUX2_DEV
    expected = their_picture(Flux2Pipeline(**parts), guidance_scale=2.5)
    assert tiny_models.relative(our_picture(ours, guidance=2.5), expected) < 1e-5
    assert not torch.equal(our_picture(ours, guidance=1.0), our_picture(ours, guidance=2.5))


@pytest.mark.parametrize("precision", ["fp32", "fp8_scaled"])
def test_every_policy_draws_the_same_bits(precision, klein):
    ours, pictures = open_parts(klein[1], precision), []
    for mode in ("none", "component", "stream"):
        ours.policy = OffloadPolicy(mode, separate_memory=True)
        ours.text_encoders.encodings.clear()
        pictures.append(our_picture(ours))
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


def test_pictures_and_masks_are_taken_up(klein):
    ours = open_parts(klein[1])
    image = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    near = ours("a cat", image=image, denoise=0.3, steps=2, seed=1).images
    far = ours("a cat", image=image, denoise=0.9, steps=2, seed=1).images
    assert near.shape == image.shape and not torch.equal(near, far)
    mask = torch.zeros(1, 64, 96)
    kept = ours("a cat", image=image, mask=mask, steps=2, seed=1).images
    alone = ours("another", image=image, mask=mask, steps=2, seed=5).images
    assert torch.allclose(kept, alone, atol=1e-5)


def test_several_prompts_of_unlike_lengths_in_one_batch(klein):
    ours = open_parts(klein[1])
    long = "word " * 120
    both = ours(["a cat", long], steps=1, **SIDES).images
    assert both.shape[0] == 2 and not torch.equal(both[0], both[1])


class TestSigmas:
    def test_the_exponent_is_diffusers(self):
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        for tokens in (64, 1024, 4096, 4300, 4301, 16384):
            for steps in (1, 4, 28, 50):
                expected = compute_empirical_mu(tokens, steps)
                assert empirical_mu(tokens, steps) == pytest.approx(expected, rel=1e-12)

    def test_the_host_s_shift_and_the_trained_one(self):
        model = flux2_models.transformer()
        shape = (1, 128, 64, 64)
        host = SamplingSettings(steps=4).noise_schedule(model, shape)
        assert host.table.mu == 2.02 and host.table.size == 10_000
        trained = SamplingSettings(steps=4, shift="resolution").noise_schedule(model, shape)
        mu = empirical_mu(4096, 4)
        assert trained.table.mu == table_for(FLUX2_DEV, "resolution", 4096, 4).mu == mu
        t = torch.linspace(1, 0, 5)[1:-1]
        expected = torch.exp(torch.tensor(mu)) / (torch.exp(torch.tensor(mu)) + 1 / t - 1)
        assert torch.allclose(trained.sigmas[1:-1], expected, rtol=1e-6)


class TestWhatDoesNotBelongTogether:
    def test_parts_of_another_family(self, klein):
        ours, pocket = open_parts(klein[1]), FluxPipeline.from_pocket()
        with pytest.raises(ValueError, match=r"latents of 16 channels, FLUX\.2-klein takes 128"):
            FluxPipeline(ours.transformer, ours.text_encoders, pocket.vae)
        with pytest.raises(ValueError, match=r"FLUX\.2-klein reads prompts by qwen3, and these"):
            FluxPipeline(ours.transformer, pocket.text_encoders, ours.vae)
        with pytest.raises(ValueError, match="encoders are Qwen3"):
            FluxPipeline(pocket.transformer, ours.text_encoders, pocket.vae)

    def test_a_control_net_of_flux_1(self, klein):
        from flux_core import FluxControlNet
        from flux_core.models.config import ControlNetConfig

        small = ControlNetConfig(hidden_size=128, depth=1)
        control = Control(FluxControlNet(small), torch.zeros(1, 16, 8, 12))
        with pytest.raises(ValueError, match=r"FLUX\.2-klein takes no ControlNets"):
            open_parts(klein[1])("a cat", controls=[control], steps=1, **SIDES)
