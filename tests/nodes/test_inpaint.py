"""Nodes of inpainting: each is one call into the core."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fluxfit.nodes.headless.stock_sampling import STOCK_SAMPLING
from PIL import Image

from flux_core.sampling.color import match_color
from tests.nodes.node_calls import defaults, empty, node, sample
from tests.nodes.test_headless import drawn_quickly


def pictures(batch: int = 1, side: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, side, side, 3, generator=torch.Generator().manual_seed(seed))


def hole(side: int = 96) -> torch.Tensor:
    mask = torch.zeros(1, side, side)
    mask[:, 30:50, 40:60] = 1
    return mask


class TestDifferentialDiffusion:
    def test_a_grey_mask_is_drawn_later(self, loaded, positive):
        (model,) = node("FluxFitDifferentialDiffusion").make(loaded[0], 0.9)
        assert model.differential == 0.9 and loaded[0].differential is None
        mask = torch.linspace(0, 1, 64)[None, :, None].expand(1, 64, 64)
        latent = empty() | {"noise_mask": mask, "samples": loaded[2].encode(pictures(side=64))}
        soft = sample((model, *loaded[1:]), positive, latent)[0]["samples"]
        assert not torch.equal(soft, sample(loaded, positive, latent)[0]["samples"])
        (stock,) = STOCK_SAMPLING["DifferentialDiffusion"]().execute(loaded[0], 0.9)
        again = sample((stock, *loaded[1:]), positive, latent)[0]["samples"]
        assert torch.equal(soft, again)

    def test_the_host_s_samplers_are_refused(self, loaded, positive):
        (model,) = node("FluxFitDifferentialDiffusion").make(loaded[0], 1.0)
        with pytest.raises(ValueError, match="draw with FluxSampler's own samplers"):
            sample((model, *loaded[1:]), positive, empty(), guider=object())


class TestCropAndStitch:
    def test_a_part_goes_out_and_comes_back(self):
        settings = defaults("FluxFitCropForInpaint", width=64, height=48, grow=2, blur=3)
        settings |= {"image": pictures(2), "mask": hole()}
        image, mask, stitch = node("FluxFitCropForInpaint").crop(**settings)
        assert image.shape == (2, 48, 64, 3) and mask.shape == (2, 48, 64)
        (whole,) = node("FluxFitStitch").stitch_image(stitch, 1 - image)
        assert torch.equal(whole[:, :25], pictures(2)[:, :25])
        assert not torch.equal(whole[:, 35:45], pictures(2)[:, 35:45])

    def test_sizes_that_nobody_draws_are_refused(self):
        settings = defaults("FluxFitCropForInpaint", width=0, height=48)
        with pytest.raises(ValueError, match="the crop is 0x48, expected both sides"):
            node("FluxFitCropForInpaint").crop(pictures(), hole(), **without(settings))

    def test_fill_draws_a_crop(self, loaded, positive):
        """What InpaintModelConditioning makes of a crop is of the crop's size."""
        settings = defaults("FluxFitCropForInpaint", width=64, height=64)
        image, mask, _ = node("FluxFitCropForInpaint").crop(pictures(), hole(), **without(settings))
        encode = STOCK_SAMPLING["InpaintModelConditioning"]().encode
        prompt, _, latent = encode(positive, positive, loaded[2], image, mask, True)
        assert latent["samples"].shape == (1, 16, 8, 8)
        assert prompt[0][1]["concat_latent_image"].shape == (1, 16, 8, 8)
        assert prompt[0][1]["concat_mask"].shape == (1, 1, 64, 64)


def without(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name not in ("image", "mask")}


def test_pixels_are_kept_outside_of_the_mask():
    drawn, original = pictures(), pictures(seed=1)
    (kept,) = node("FluxFitKeepPixels").keep(drawn, original, hole(), 4)
    assert torch.equal(kept[:, :30], original[:, :30])
    assert torch.equal(kept[:, 38:42, 48:52], drawn[:, 38:42, 48:52])


def test_colors_are_matched_where_the_mask_says():
    drawn, reference = pictures() * 0.5, pictures()
    for method in ("wavelet", "mean_std"):
        (matched,) = node("FluxFitColorMatch").match(drawn, reference, method, 0.5, hole())
        assert torch.equal(matched, match_color(drawn, reference, hole(), method, 0.5))


def test_what_canny_reads_is_the_middle_of_its_picture(loaded, positive):
    encode = STOCK_SAMPLING["InstructPixToPixConditioning"]().encode
    picture = torch.rand(1, 69, 85, 3, generator=torch.Generator().manual_seed(0))
    prompt, negative, latent = encode(positive, [], loaded[2], picture)
    expected = loaded[2].encode(picture[:, 2:66, 2:82])
    assert torch.equal(prompt[0][1]["concat_latent_image"], expected) and negative == []
    assert "concat_mask" not in prompt[0][1] and "concat_latent_image" not in positive[0][1]
    assert latent["samples"].shape == expected.shape and not latent["samples"].any()


def test_the_graph_without_a_seam_keeps_every_pixel_outside_of_the_mask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = {}
    for path in map(Path, drawn_quickly("soft_inpaint.json")):
        pictures[path.stem] = np.asarray(Image.open(path).convert("RGB"))
    mask = slice(108, 252), slice(56, 200)
    for name in ("hard_inpaint_00001", "soft_inpaint_00001"):
        changed = (pictures[name] != pictures["before_soft_inpaint_00001"]).any(axis=-1)
        assert changed[mask].any()
        changed[mask] = False
        assert not changed.any()
