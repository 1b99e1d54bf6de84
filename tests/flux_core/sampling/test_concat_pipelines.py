"""Canny, Depth and Fill against diffusers' own pipelines: whole pictures, and what is read beside
the noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from flux_core import load_lora, load_transformer, load_vae
from flux_core.models.config import VAEConfig
from flux_core.sampling.latents import pack, unpack
from flux_core.sampling.run import SamplingSettings
from tests import tiny_models
from tests.flux_core.sampling.test_reference_pictures import (
    GUIDANCE,
    Pipeline,
    conditioning,
    picture,
)

HEIGHT, WIDTH, STEPS, SEED = 48, 64, 3, 5
CONTROL, FILL = 128, 384
NOISY = 64


@pytest.fixture(scope="module")
def vae() -> nn.Module:
    model = tiny_models.diffusers_vae()
    model.register_to_config(  # type: ignore[operator]
        shift_factor=VAEConfig().shift_factor, scaling_factor=VAEConfig().scale_factor
    )
    return model


@pytest.fixture(autouse=True)
def mean_of_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers draws from what its VAE encodes; ours and the host take the mean."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
    )


class Both:
    """One wide model in diffusers and here, and what its first layer was given in either."""

    def __init__(self, vae: nn.Module, in_channels: int, batch: int, folder: Path) -> None:
        self.vae, self.batch = vae, batch
        self.transformer = tiny_models.diffusers_transformer(in_channels=in_channels)
        files = {
            name: tiny_models.save(model.state_dict(), folder / f"{name}.safetensors")
            for name, model in (("transformer", self.transformer), ("vae", vae))
        }
        ours = load_transformer(files["transformer"], precision="fp32")
        our_vae = load_vae(files["vae"], dtype=torch.float32)
        self.pipeline = Pipeline(ours, nn.Module(), our_vae, policy="none", device="cpu")
        self.pipeline.prompts = (conditioning(1, batch), conditioning(2, batch))
        self.their_reads: list[Tensor] = []
        self.our_reads: list[Tensor] = []
        first = self.transformer.get_submodule("x_embedder")
        first.register_forward_pre_hook(lambda _, given: self.their_reads.append(given[0]))
        ours.img_in.register_forward_pre_hook(lambda _, given: self.our_reads.append(given[0]))

    def schedule(self, denoise: float) -> tuple[Tensor, Tensor]:
        """Our noise (B, 16, h, w) and sigmas (steps + 1,)."""
        settings = SamplingSettings(seed=SEED, steps=STEPS, denoise=denoise)
        shape = (self.batch, 16, HEIGHT // 8, WIDTH // 8)
        schedule = settings.noise_schedule(self.pipeline.transformer, shape)
        return schedule.noise, schedule.sigmas

    def ours(self, **options: Any) -> Tensor:
        """Pictures (B, H, W, 3)."""
        size = {"height": HEIGHT, "width": WIDTH, "steps": STEPS, "seed": SEED}
        return self.pipeline(["a"] * self.batch, guidance=GUIDANCE, **(size | options)).images

    def theirs(self, kind: str, denoise: float = 1.0, **options: Any) -> Tensor:
        """Pictures (B, H, W, 3) of a pipeline of diffusers, of our noise and sigmas."""
        import diffusers

        parts = (self.vae, None, None, None, None, self.transformer)
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
        pipeline = getattr(diffusers, kind)(scheduler, *parts)
        pipeline.set_progress_bar_config(disable=True)
        noise, sigmas = self.schedule(denoise)
        positive = self.pipeline.prompts[0]
        if denoise == 1:
            options["latents"] = pack(noise)
        packed = pipeline(
            prompt_embeds=positive.context,
            pooled_prompt_embeds=positive.pooled,
            guidance_scale=GUIDANCE,
            height=HEIGHT,
            width=WIDTH,
            sigmas=sigmas[:-1].tolist(),
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(SEED),  # begun so, it draws our noise
            output_type="latent",
            **options,
        ).images
        latents = unpack(packed, HEIGHT // 8, WIDTH // 8)
        config = self.vae.config
        latents = latents / config.scaling_factor + config.shift_factor
        decoded = self.vae.decode(latents).sample  # type: ignore[operator]
        return (decoded / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    def check(self, ours: Tensor, theirs: Tensor) -> None:
        assert ours.std() > 0.01 and tiny_models.relative(ours, theirs) < 1e-5
        assert len(self.our_reads) == len(self.their_reads) == STEPS
        for mine, other in zip(self.our_reads, self.their_reads, strict=True):
            assert tiny_models.relative(mine[..., NOISY:], other[..., NOISY:]) < 1e-5
            assert tiny_models.relative(mine, other) < 1e-5


@pytest.fixture
def both(request: pytest.FixtureRequest, vae: nn.Module, tmp_path: Path) -> Both:
    return Both(vae, *request.param, tmp_path)


def mask(batch: int) -> Tensor:
    """(B, H, W) of zeros and ones whose edges lie within latents, another one for each picture."""
    generator = torch.Generator().manual_seed(9)
    where = (torch.rand(batch, HEIGHT, WIDTH, generator=generator) > 0.7).float()
    where[:, 11:29, 21:50] = 1
    return where


def picture_of_the_mask(read: Tensor) -> Tensor:
    """A mask (B, H, W) from 256 numbers a token (B, L, 256), each pixel by hand."""
    rows, columns = HEIGHT // 16, WIDTH // 16
    tokens = read.view(len(read), rows, columns, 8, 8, 2, 2)
    # a token's channels: row and column in a latent, then which latent of the four
    return tokens.permute(0, 1, 5, 3, 2, 6, 4).reshape(len(read), HEIGHT, WIDTH)


@pytest.mark.parametrize("both", [(CONTROL, 1), (CONTROL, 2)], indirect=True)
@torch.no_grad()
def test_canny_and_depth(both: Both):
    control = picture(HEIGHT, WIDTH, batch=both.batch)
    theirs = both.theirs("FluxControlPipeline", control_image=control.movedim(-1, 1) * 2 - 1)
    both.check(both.ours(condition=control), theirs)


@pytest.mark.parametrize("both", [(CONTROL, 1)], indirect=True)
@torch.no_grad()
def test_canny_and_depth_from_a_picture(both: Both):
    control, start = picture(HEIGHT, WIDTH, 1), picture(HEIGHT, WIDTH, 2)
    options = {"control_image": control.movedim(-1, 1) * 2 - 1, "image": start.movedim(-1, 1)}
    theirs = both.theirs("FluxControlImg2ImgPipeline", 0.6, strength=1.0, **options)
    both.check(both.ours(condition=control, image=start, denoise=0.6), theirs)


@pytest.mark.parametrize("both", [(FILL, 1), (FILL, 2)], indirect=True)
@pytest.mark.parametrize("denoise", [1.0, 0.6])
@torch.no_grad()
def test_fill(both: Both, denoise: float):
    shown, where = picture(HEIGHT, WIDTH, batch=both.batch), mask(both.batch)
    options = {"image": shown.movedim(-1, 1), "mask_image": where[:, None], "strength": 1.0}
    theirs = both.theirs("FluxFillPipeline", denoise, **options)
    image = None if denoise == 1 else shown
    ours = both.ours(condition=shown, condition_mask=where, image=image, denoise=denoise)
    both.check(ours, theirs)
    read = both.our_reads[0][..., 2 * NOISY :]
    assert torch.equal(read, both.their_reads[0][..., 2 * NOISY :])
    assert torch.equal(picture_of_the_mask(read), where)


@pytest.mark.parametrize("both", [(FILL, 1)], indirect=True)
@torch.no_grad()
def test_fill_sees_nothing_of_what_it_paints(both: Both):
    shown, where = picture(HEIGHT, WIDTH), mask(1)
    other = torch.where(where[..., None] > 0.5, 1 - shown, shown)
    pictures = [both.ours(condition=each, condition_mask=where) for each in (shown, other)]
    assert torch.equal(*pictures)
    assert not torch.equal(both.ours(condition=other, condition_mask=1 - where), pictures[0])


@pytest.mark.parametrize("both", [(FILL, 1)], indirect=True)
@torch.no_grad()
def test_a_condition_of_another_shape_is_cut_with_its_mask(both: Both):
    shown, where = picture(HEIGHT, WIDTH), mask(1)
    expected = both.ours(condition=shown, condition_mask=where)
    wide = torch.cat([torch.ones(1, HEIGHT, 24, 3), shown, torch.ones(1, HEIGHT, 24, 3)], dim=2)
    wide_mask = torch.cat([torch.ones(1, HEIGHT, 24), where, torch.ones(1, HEIGHT, 24)], dim=2)
    assert torch.equal(both.ours(condition=wide, condition_mask=wide_mask), expected)


@pytest.mark.parametrize("width", [CONTROL, FILL])
@torch.no_grad()
def test_a_lora_that_widens_the_input_to_fill_sees_nothing_of_what_it_paints(
    vae: nn.Module, width: int, tmp_path: Path
):
    both = Both(vae, NOISY, 1, tmp_path)
    cast(Any, both.pipeline.text_encoders).modules_used = ()
    hidden = both.pipeline.transformer.img_in.out_features
    factors = {
        "img_in.lora_A.weight": 0.1 * torch.randn(2, width),
        "img_in.lora_B.weight": 0.1 * torch.randn(hidden, 2),
    }
    loras = [(load_lora(tiny_models.save(factors, tmp_path / "lora.safetensors")), 1.0)]
    shown, where = picture(HEIGHT, WIDTH), mask(1)
    other = torch.where(where[..., None] > 0.5, 1 - shown, shown)
    options = {"loras": loras, "condition_mask": where if width == FILL else None}
    pictures = [both.ours(condition=each, **options) for each in (shown, other)]
    assert torch.equal(*pictures) is (width == FILL)


@torch.no_grad()
def test_a_lora_at_strength_0_widens_nothing(vae: nn.Module, tmp_path: Path):
    """Nothing that it says of the input counts: neither what is read, nor what is refused."""
    both = Both(vae, NOISY, 1, tmp_path)
    cast(Any, both.pipeline.text_encoders).modules_used = ()
    hidden = both.pipeline.transformer.img_in.out_features

    def lora(width: int, strength: float) -> tuple[Any, float]:
        factors = {
            "img_in.lora_A.weight": 0.1 * torch.randn(2, width),
            "img_in.lora_B.weight": 0.1 * torch.randn(hidden, 2),
        }
        path = tiny_models.save(factors, tmp_path / f"{width}.safetensors")
        return load_lora(path), strength

    control = lora(CONTROL, 1.0)
    options = {"condition": picture(HEIGHT, WIDTH), "condition_mask": mask(1)}
    alone = both.ours(loras=[control], **options)
    assert torch.equal(both.ours(loras=[control, lora(FILL, 0.0)], **options), alone)
    plain = both.ours(loras=[])
    for width in (CONTROL, FILL, 100):
        assert torch.equal(both.ours(loras=[lora(width, 0.0)]), plain)
        with pytest.raises(ValueError, match="this model reads none"):
            both.ours(loras=[lora(width, 0.0)], **options)
