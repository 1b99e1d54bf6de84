"""Pictures as people have them, through the one opener."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from flux_core.errors import PictureError
from flux_core.pictures import image_and_mask, open_frames, open_picture, over_white, upright_size
from flux_core.sampling.images import as_masks, as_pictures

RED, BLUE = (255, 0, 0), (0, 0, 255)
ORIENTATION = 0x0112


def half(mode: str = "RGB") -> Image.Image:
    """Left red, right blue, 40 wide and 20 high."""
    picture = Image.new("RGB", (40, 20), BLUE)
    picture.paste(RED, (0, 0, 20, 20))
    return picture.convert(mode)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_pictures_are_upright(turn, ending, tmp_path):
    seen = half()
    kept = {
        1: seen,
        2: seen.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: seen.transpose(Image.Transpose.ROTATE_180),
        4: seen.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: seen.transpose(Image.Transpose.TRANSPOSE),
        6: seen.transpose(Image.Transpose.ROTATE_90),
        7: seen.transpose(Image.Transpose.TRANSVERSE),
        8: seen.transpose(Image.Transpose.ROTATE_270),
    }[turn]
    path = tmp_path / f"p.{ending}"
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    kept.save(path, exif=exif, quality=100)
    picture = open_picture(path)
    assert picture.size == (40, 20) == upright_size(path)
    assert np.abs(np.asarray(picture, int) - np.asarray(seen, int)).mean() < 12


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
)
def test_every_mode_is_brought_to_eight_bits(mode, tmp_path):
    grey = np.full((20, 40), 79, np.uint8)  # 0.31 of white
    wide = {"I;16": (np.uint16, 257), "I": (np.int32, 257), "F": (np.float32, 1 / 255)}
    if mode in wide:
        kind, factor = wide[mode]
        picture = Image.fromarray((grey.astype(np.float64) * factor).astype(kind))
    else:
        picture = Image.fromarray(grey).convert("RGB").convert(mode)
    path = tmp_path / ("p.tif" if mode not in ("P", "LA") else "p.png")
    picture.save(path)
    image, _ = image_and_mask(path)
    assert image.shape == (1, 20, 40, 3)
    wanted = 0.31 if mode != "1" else float(image.mean())
    assert abs(float(image.mean()) - wanted) < 0.02


@pytest.mark.parametrize("ending", ["png", "webp", "gif"])
def test_transparency_is_a_mask_and_white_to_train_on(ending, tmp_path):
    picture = half("RGBA")
    picture.putalpha(Image.new("L", (40, 20), 0))
    path = tmp_path / f"p.{ending}"
    picture.save(path, lossless=True) if ending == "webp" else picture.save(path)
    _, mask = image_and_mask(path)
    assert mask.shape == (1, 20, 40) and float(mask.min()) == 1.0
    assert over_white(open_picture(path)).getpixel((0, 0)) == (255, 255, 255)
    half().save(tmp_path / "o.png")
    assert image_and_mask(tmp_path / "o.png")[1].shape == (1, 64, 64)


def test_a_palettes_transparent_colour_counts(tmp_path):
    picture = half("P")
    picture.save(tmp_path / "p.png", transparency=picture.getpixel((0, 0)))
    _, mask = image_and_mask(tmp_path / "p.png")
    assert float(mask[0, 5, 5]) == 1.0 and float(mask[0, 5, 30]) == 0.0


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_a_moving_picture_is_a_batch_and_its_first_frame_a_picture(ending, tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, BLUE, (0, 255, 0))]
    path = tmp_path / f"p.{ending}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    assert image_and_mask(path)[0].shape == (3, 16, 16, 3)
    assert len(open_frames(path)) == 3
    r, g, b = open_picture(path).convert("RGB").getpixel((3, 3))  # type: ignore[misc]
    assert r > 200 and g < 60 and b < 60


@pytest.mark.parametrize(
    ("kind", "top", "brightest"),
    [
        (np.float32, 1.02, 1.0),  # resized, it overshoots
        (np.float32, 1.25, 1.0),
        (np.float32, 255.0, 1.0),
        (np.float32, 65535.0, 1.0),
        (np.float32, 1e6, 1.0),
        (np.int32, 255, 1.0),
        (np.int32, 65535, 1.0),
        (np.int32, 100_000, 1.0),
        (np.int32, 2**31 - 1, 1.0),
        (np.uint32, 2**32 - 1, 1.0),
    ],
)
def test_grey_of_any_range_is_a_ramp(kind, top, brightest, tmp_path):
    ramp = (np.linspace(0, 1, 101)[None].repeat(8, 0) * top).astype(kind)
    signed = ramp.view(np.int32) if kind is np.uint32 else ramp
    path = tmp_path / "p.tif"
    Image.fromarray(signed).save(path)
    if kind is np.uint32:  # Pillow writes that they have a sign
        head = b"\x53\x01\x03\0\x01\0\0\0"
        assert path.read_bytes().count(head + b"\x02") == 1
        path.write_bytes(path.read_bytes().replace(head + b"\x02", head + b"\x01"))
    row = image_and_mask(path)[0][0, 0, :, 0]
    assert bool((row.diff() >= 0).all()) and abs(float(row[50]) - 0.5 * float(row[-1])) < 0.13
    assert float(row[0]) == 0 and float(row[-1]) == brightest


def test_a_number_below_nothing_is_black(tmp_path):
    row = np.array([[-1, 0, 32768, 65535]], np.int32).repeat(8, 0)
    Image.fromarray(row).save(tmp_path / "p.tif")
    seen = 255 * image_and_mask(tmp_path / "p.tif")[0][0, 0, :, 0]
    assert seen.round().tolist() == [0, 0, 128, 255]


@pytest.mark.parametrize("ending", ["png", "webp", "jpg"])
def test_exif_that_is_none_costs_no_pixels(ending, tmp_path):
    path = tmp_path / f"p.{ending}"
    half().save(path, exif=b"Exif\0\0garbage!!")
    assert open_picture(path).size == upright_size(path) == (40, 20)


def test_a_long_text_inside_of_a_picture_costs_none_either(tmp_path):
    about = PngInfo()
    about.add_text("workflow", "x" * 3_000_000, zip=True)
    half().save(tmp_path / "p.png", pnginfo=about)
    assert open_picture(tmp_path / "p.png").size == (40, 20)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_avif_is_read(tmp_path):
    half().save(tmp_path / "p.avif", quality=95)
    assert open_picture(tmp_path / "p.avif").size == (40, 20)


@pytest.mark.parametrize("name", ["p.png", "p.jpg", "p.heic", "p.jxl", "p.webp"])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", bytes(300)])
def test_what_is_no_picture_is_one_error(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (open_picture, image_and_mask, upright_size):
        with pytest.raises(PictureError, match=str(path)) as raised:
            read(path)
        assert "\n" not in str(raised.value)
    if name == "p.heic" and ".heic" not in Image.registered_extensions():
        assert "pillow-heif" in str(raised.value)


def test_a_picture_without_end_is_refused(tmp_path):
    head = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (10**6).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    Path(tmp_path / "p.png").write_bytes(head + bytes(4))
    with pytest.raises(PictureError):
        open_picture(tmp_path / "p.png")


@pytest.mark.parametrize(
    "value",
    [
        half(),
        np.asarray(half()),
        np.asarray(half(), np.float32) / 255,
        torch.from_numpy(np.array(half())),
        torch.from_numpy(np.array(half()))[None],
        torch.from_numpy(np.array(half("RGBA"))),
        [half()],
    ],
)
def test_pictures_from_python_are_all_one(value):
    expected = torch.from_numpy(np.array(half(), np.float32) / 255)[None]
    assert torch.allclose(as_pictures(value, "image"), expected)


@pytest.mark.parametrize(
    "value",
    [
        Image.new("L", (40, 20), 255),
        np.ones((20, 40)),
        torch.ones(20, 40),
        torch.ones(1, 20, 40),
        torch.ones(1, 1, 20, 40),
        torch.ones(20, 40, dtype=torch.bool),
        torch.full((20, 40), 255, dtype=torch.uint8),
    ],
)
def test_masks_from_python_are_all_one(value):
    assert torch.equal(as_masks(value, "mask"), torch.ones(1, 20, 40))
