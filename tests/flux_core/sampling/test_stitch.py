"""Parts cut out with context, and put back without a trace outside of the blended zone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flux_core.sampling.masks import blurred, dilated, eroded, keep_pixels_outside
from flux_core.sampling.regions import Area
from flux_core.sampling.stitch import CropSettings, crop_for_inpaint, stitch_back


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, 3, generator=torch.Generator().manual_seed(seed))


def rectangle(height: int, width: int, rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(1, height, width)
    mask[0, rows, columns] = 1
    return mask


class TestMasks:
    @pytest.mark.parametrize("pixels", [0, 1, 5, 8, 21])
    def test_growing_and_shrinking_by_the_distance_of_squares(self, pixels):
        mask = (pictures(2, 40, 33)[..., 0] > 0.99).float()
        expected = torch.zeros_like(mask)
        for n, row, column in torch.nonzero(mask).tolist():
            top, left = max(0, row - pixels), max(0, column - pixels)
            expected[n, top : row + pixels + 1, left : column + pixels + 1] = 1
        assert torch.equal(dilated(mask, pixels), expected)
        assert torch.equal(eroded(1 - mask, pixels), 1 - expected)

    def test_a_blur_ends_at_its_radius(self):
        mask = rectangle(64, 64, slice(20, 50), slice(0, 30))
        soft = blurred(mask, 6)
        assert torch.equal(soft > 0, dilated(mask, 6) > 0)
        inner = eroded(mask, 6) > 0
        assert torch.allclose(soft[inner], torch.ones(int(inner.sum())), atol=1e-6)
        row = soft[0, 35]
        assert bool((row.diff() <= 1e-6).all()) and abs(float(row[29:31].mean()) - 0.5) < 1e-4
        assert blurred(mask, 0) is mask


class TestCrop:
    def test_the_box_has_the_context_and_the_shape_of_the_target(self):
        image = pictures(1, 200, 300)
        mask = rectangle(200, 300, slice(80, 100), slice(140, 180))
        settings = CropSettings(96, 64, context=1.5, grow=0, blur=0)
        crop = crop_for_inpaint(image, mask, settings)
        # 40 wide with context 60, and so 40 high, around row 90 and column 160
        assert crop.stitch.boxes == [Area(40, 60, 70, 130)]
        assert crop.images.shape == (1, 64, 96, 3) and crop.masks.shape == (1, 64, 96)
        assert float(crop.masks.mean()) == pytest.approx(20 * 40 / (40 * 60), abs=0.02)

    def test_without_a_target_nothing_is_scaled(self):
        image = pictures(1, 200, 300)
        mask = rectangle(200, 300, slice(80, 100), slice(140, 180))
        crop = crop_for_inpaint(image, mask, CropSettings(0, 0, context=2.0, grow=4, blur=8))
        (box,) = crop.stitch.boxes
        assert (box.height, box.width) == (96, 128)  # 2 (20 + 24) and 2 (40 + 24), to tokens
        assert torch.equal(crop.images[0], image[0, 42:138, 96:224])
        assert torch.equal(crop.masks, box.cut(dilated(mask, 4)))

    @pytest.mark.parametrize(
        ("rows", "columns"),
        [(slice(0, 10), slice(0, 12)), (slice(190, 200), slice(290, 300)), (slice(0, 200),) * 2],
    )
    def test_boxes_at_the_edge_stay_in_the_picture_or_go_beyond_it(self, rows, columns):
        image, mask = pictures(1, 200, 300), rectangle(200, 300, rows, columns)
        crop = crop_for_inpaint(image, mask, CropSettings(64, 64, grow=0, blur=4))
        (box,) = crop.stitch.boxes
        assert box.height == box.width
        if box.height <= 200:
            assert 0 <= box.top <= 200 - box.height and 0 <= box.left <= 300 - box.width
        else:
            assert box.top < 0 < box.top + box.height - 200
            assert crop.masks[0, 0].max() == 0  # nothing is drawn beyond the picture
        changed = stitch_back(torch.ones_like(crop.images), crop.stitch)
        weights = crop.stitch.weights
        assert torch.equal(changed[weights == 0], image[weights == 0])
        assert bool((changed[weights == 1] > 1 - 1e-5).all())

    def test_wrong_numbers_are_named(self):
        for options, message in (
            ({"width": 100}, "crop's width is 100, expected a multiple of 16"),
            ({"width": 0}, "crop is 0x1024, expected both sides, or 0 for both"),
            ({"context": 0.5}, "crop's context is 0.5, expected 1 to"),
            ({"grow": -1}, "grow is -1"),
            ({"blur": 1.5}, "blur is 1.5, expected a whole number"),
        ):
            with pytest.raises(ValueError, match=message):
                CropSettings(**options)
        with pytest.raises(ValueError, match="mask has 2 pictures, the batch 3"):
            crop_for_inpaint(pictures(3, 32, 32), torch.ones(2, 32, 32), CropSettings(32, 32))


class TestStitch:
    @pytest.mark.parametrize(("images", "masks"), [(1, 1), (1, 3), (3, 1), (3, 3)])
    def test_outside_of_the_blended_zone_nothing_changes(self, images, masks):
        originals = pictures(images, 120, 90)
        drawn_where = torch.zeros(masks, 120, 90)
        for n in range(masks):
            drawn_where[n, 20 + 20 * n : 50 + 20 * n, 30:60] = 1
        settings = CropSettings(64, 64, grow=3, blur=5)
        crop = crop_for_inpaint(originals, drawn_where, settings)
        batch = max(images, masks)
        assert len(crop.images) == batch
        other = 1 - crop.images
        stitched = stitch_back(other, crop.stitch)
        for n in range(batch):
            original = originals[n % images]
            zone = dilated(drawn_where[n % masks][None], 3 + 5)[0] > 0
            assert torch.equal(stitched[n][~zone], original[~zone])
            assert not torch.equal(stitched[n][zone], original[zone])

    def test_a_part_that_was_not_scaled_comes_back_as_it_was_drawn(self):
        original = pictures(1, 96, 96)
        mask = rectangle(96, 96, slice(30, 60), slice(30, 60))
        crop = crop_for_inpaint(original, mask, CropSettings(0, 0, grow=8, blur=8))
        drawn = pictures(*crop.images.shape[:3], seed=1)
        stitched = stitch_back(drawn, crop.stitch)
        (box,) = crop.stitch.boxes
        top, left = box.top, box.left
        inner = stitched[0, 30:60, 30:60]
        assert torch.allclose(inner, drawn[0, 30 - top : 60 - top, 30 - left : 60 - left])
        weight = crop.stitch.weights[0, 25, 45]
        expected = torch.lerp(original[0, 25, 45], drawn[0, 25 - top, 45 - left], weight)
        assert 0 < weight < 1 and torch.allclose(stitched[0, 25, 45], expected)

    def test_an_empty_mask_gives_the_picture_back(self):
        original = pictures(1, 60, 90)
        crop = crop_for_inpaint(original, torch.zeros(1, 60, 90), CropSettings(64, 64))
        assert torch.equal(stitch_back(1 - crop.images, crop.stitch), original)

    def test_several_drawings_of_one_part(self):
        original = pictures(2, 64, 64)
        mask = rectangle(64, 64, slice(20, 40), slice(20, 40))
        crop = crop_for_inpaint(original, mask, CropSettings(32, 32, blur=2))
        twice = stitch_back(torch.cat([crop.images * 0, crop.images * 0 + 1]), crop.stitch)
        assert len(twice) == 4
        assert float(twice[:2, 30, 30].max()) == 0 and float(twice[2:, 30, 30].min()) > 1 - 1e-5
        assert torch.equal(twice[0, 0], original[0, 0]) and torch.equal(twice[3, 0], original[1, 0])
        with pytest.raises(ValueError, match="3 crops for 2 pictures"):
            stitch_back(crop.images[:1].repeat(3, 1, 1, 1), crop.stitch)


class TestKeptPixels:
    def test_they_are_kept_to_the_bit_and_fade_in_over_the_feather(self):
        drawn, original = pictures(2, 64, 64), pictures(1, 64, 64, seed=1)
        mask = rectangle(64, 64, slice(10, 40), slice(0, 40))
        kept = keep_pixels_outside(drawn, original, mask, 4)
        outside = mask[0] == 0
        for n in range(2):
            assert torch.equal(kept[n][outside], original[0][outside])
            assert torch.equal(kept[n, 15:35, :30], drawn[n, 15:35, :30])
        weight = ((kept - original) / (drawn - original))[0, 25].median(dim=-1).values
        expected = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2])  # columns 35 to 39
        assert torch.allclose(weight[35:40], expected, atol=1e-3)
        grey = keep_pixels_outside(drawn, original, mask * 0.01, 0)
        assert torch.equal(grey[0, 10:40, :40], drawn[0, 10:40, :40])

    def test_a_mask_of_another_size_is_scaled_and_unlike_pictures_are_refused(self):
        drawn = pictures(1, 64, 64)
        kept = keep_pixels_outside(drawn, 1 - drawn, torch.ones(1, 8, 8), 0)
        assert torch.equal(kept, drawn)
        with pytest.raises(ValueError, match="original is 32x64 pixels, what was drawn 64x64"):
            keep_pixels_outside(drawn, drawn[:, :, :32], torch.ones(1, 8, 8), 0)
