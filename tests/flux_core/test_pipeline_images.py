"""What a pipeline gives back: seeds, Pillow's pictures, files; and what it takes for a picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from flux_core import FluxPipeline, Images, LoraUse
from flux_core.offload import MemoryReport
from flux_core.receipts import KEY, Receipt, pixels_hash
from flux_core.sampling.conditioning import RegionalOptions
from flux_core.sampling.latents import host_noise
from flux_core.sampling.regional import RegionPrompt
from flux_core.sampling.samplers import step_noise
from flux_core.sampling.settings import SamplingSettings

SMALL = {"width": 64, "height": 48, "steps": 2}
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return FluxPipeline.from_pocket(device="cpu", precision="fp32")


def drawn_images(count: int = 1) -> Images:
    generator = torch.Generator().manual_seed(count)
    return Images(torch.rand(count, 6, 8, 3, generator=generator), MemoryReport())


class TestSeeds:
    """One for each picture."""

    def test_each_picture_has_the_noise_of_its_seed_to_the_bit(self):
        seeds = [7, 7, 2**64 - 1]
        noise = host_noise((3, 16, 6, 8), seeds)
        steps = step_noise(noise, seeds)
        first, second = steps(0), steps(1)
        for row, seed in enumerate(seeds):
            alone = host_noise((1, 16, 6, 8), seed)
            assert torch.equal(noise[row : row + 1], alone)
            later = step_noise(alone, seed)
            assert torch.equal(first[row : row + 1], later(0))
            assert torch.equal(second[row : row + 1], later(1))

    @pytest.mark.parametrize("sampler", ["euler", "euler_ancestral"])
    def test_each_picture_is_that_of_its_seed(self, sampler, pipeline):
        together = pipeline(PROMPT, seed=[3, 9], sampler=sampler, **SMALL)
        assert together.seeds == (3, 9)
        for picture, seed in zip(together.images, (3, 9), strict=True):
            alone = pipeline(PROMPT, seed=seed, sampler=sampler, **SMALL)
            assert alone.seeds == (seed,)
            assert (picture - alone.images[0]).abs().max() < 1e-3

    def test_prompts_and_seeds_go_in_pairs(self, pipeline):
        prompts = [PROMPT, "a green star"]
        pairs = pipeline(prompts, seed=[3, 9], **SMALL)
        alone = pipeline(prompts[1], seed=9, **SMALL)
        assert (pairs.images[1] - alone.images[0]).abs().max() < 0.05
        assert pipeline(PROMPT, seed=4, batch_size=2, **SMALL).seeds == (4, 4)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"seed": None}, "seed is None, expected a whole number"),
            ({"seed": []}, "seed is an empty list"),
            ({"seed": [1, None]}, "seed is None"),
            ({"seed": [1, -1]}, "seed is -1"),
            ({"seed": [1, 2], "batch_size": 3}, "2 seeds and 3 pictures"),
            ({"batch_size": 0}, "batch_size is 0"),
        ],
    )
    def test_seeds_that_are_none_are_told(self, options, message, pipeline):
        with pytest.raises(ValueError, match=message):
            pipeline(PROMPT, **SMALL, **options)

    def test_settings_for_other_pictures_are_refused(self):
        assert SamplingSettings(seed=[1, 2]).seed == (1, 2)
        with pytest.raises(ValueError, match="2 seeds, and 3 pictures"):
            host_noise((3, 16, 2, 2), (1, 2))


class TestFiles:
    """What pictures are saved as."""

    def test_a_name_is_a_file_that_is_not_overwritten_by_itself(self, tmp_path):
        drawn = drawn_images()
        (path,) = drawn.save(tmp_path / "new" / "a.png", texts={"why": "to see"})
        assert path == tmp_path / "new" / "a.png"
        saved = Image.open(path)
        receipt = Receipt.parse(saved.text.pop(KEY))  # type: ignore[attr-defined]
        assert receipt.pixels == pixels_hash(drawn.pixels[0])
        assert saved.text == {"why": "to see"}  # type: ignore[attr-defined]
        assert np.array_equal(np.asarray(saved), np.asarray(drawn.pil[0]))
        before = path.read_bytes()
        with pytest.raises(FileExistsError, match="a.png exists already"):
            drawn_images(2).images[:1], drawn.save(path)
        assert path.read_bytes() == before
        Images(1 - drawn.images, drawn.report).save(path, overwrite=True)
        assert path.read_bytes() != before and len(list(path.parent.iterdir())) == 1

    def test_folders_and_beginnings_get_the_next_free_numbers(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        two = drawn_images(2)
        names = [path.relative_to(tmp_path).as_posix() for path in two.save("out/")]
        assert names == ["out/fluxfit_00001.png", "out/fluxfit_00002.png"]
        assert [path.name for path in drawn_images().save("out")] == ["fluxfit_00003.png"]
        assert [path.name for path in two.save("a.png")] == ["a_00001.png", "a_00002.png"]
        (tmp_path / "a_00007.png").write_bytes(b"")
        assert [path.name for path in drawn_images().save("a")] == ["a_00008.png"]
        notes = [{"n": "1"}, {"n": "2"}]
        saved = [Image.open(path).text for path in two.save("b", texts=notes)]  # type: ignore[attr-defined]
        receipts = [Receipt.parse(texts.pop(KEY)) for texts in saved]
        assert saved == notes and [receipt.picture["index"] for receipt in receipts] == [0, 1]
        with pytest.raises(ValueError, match="texts are of 1 pictures, expected 2"):
            two.save("b", texts=notes[:1])

    @pytest.mark.parametrize("name", ["one.jpg", "new/one.WEBP", ""])
    def test_a_name_of_another_kind_of_picture_is_refused(self, name, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=r"PNG, expected NAME\.png|name of pictures is empty"):
            drawn_images().save(name)
        assert not list(tmp_path.iterdir())
        (tmp_path / "a.jpg").mkdir()
        assert drawn_images().save("a.jpg")[0].parent.name == "a.jpg"

    def test_pillow_gets_bytes_as_the_host_rounds_them(self):
        grey = torch.tensor([0.0, 0.5, 0.999, 1.0]).reshape(1, 2, 2, 1)
        images = Images(grey.expand(1, 2, 2, 3), MemoryReport())
        assert np.asarray(images.pil[0])[..., 0].tolist() == [[0, 127], [254, 255]]
        assert len(images) == 1


#: What an argument for a picture is given, and what is said of it.
NO_PICTURES = [
    ("image", torch.full((1, 48, 64, 3), torch.nan), "image has values from nan to nan"),
    ("image", torch.zeros(48), "image has shape"),
    ("image", "nothing.png", "nothing.png: no such file"),
    ("image", [], "image is a list"),
    ("image", np.zeros((48, 64, 3), complex), "image is an array of complex128"),
    ("image", object(), "image is a object, expected a tensor or a picture"),
    ("reference", [], "reference is an empty list"),
    ("reference", "nothing.png", "nothing.png: no such file"),
    ("condition", np.zeros((48, 64), np.uint8), "this model reads none"),
    ("control_picture", np.zeros((48, 64), np.uint8), "control"),
    ("mask", torch.ones(48, 64), "there is no image"),
]


class TestPictures:
    """What is a picture where one is asked for."""

    def test_all_kinds_of_one_picture_are_the_same(self, pipeline, tmp_path):
        grey = np.full((48, 64), 127, np.uint8)
        Image.fromarray(grey).save(tmp_path / "grey.png")
        as_floats = (torch.from_numpy(grey).float() / 255)[None, ..., None].expand(1, 48, 64, 3)
        half = {"denoise": 0.5, "steps": 2, "mask": torch.ones(48, 64)}
        expected = pipeline(PROMPT, image=as_floats, **half).images
        for picture in (
            grey,
            grey[..., None],
            torch.from_numpy(grey),
            Image.fromarray(grey),
            tmp_path / "grey.png",
            str(tmp_path / "grey.png"),
            np.repeat(grey[..., None], 3, 2),
            np.repeat(grey[..., None], 4, 2),
        ):
            drawn = pipeline(PROMPT, image=picture, **half).images
            assert torch.equal(drawn, expected), picture

    def test_files_are_masks_and_references_too(self, pipeline, tmp_path):
        Image.new("L", (64, 48), 255).save(tmp_path / "mask.png")
        Image.new("RGB", (32, 48), "red").save(tmp_path / "red.png")
        masked = {"image": np.zeros((48, 64), np.uint8), "steps": 1}
        drawn = pipeline(PROMPT, mask=tmp_path / "mask.png", **masked).images
        assert torch.equal(drawn, pipeline(PROMPT, mask=torch.ones(1, 48, 64), **masked).images)
        one = pipeline(PROMPT, reference=tmp_path / "red.png", reference_size="own", **SMALL)
        red = Image.open(tmp_path / "red.png")
        other = pipeline(PROMPT, reference=[red], reference_size="own", **SMALL)
        assert torch.equal(one.images, other.images)

    @pytest.mark.parametrize(("name", "value", "message"), NO_PICTURES)
    def test_what_is_none_is_refused_in_words(self, name, value, message, pipeline):
        with pytest.raises(ValueError, match=message):
            pipeline(PROMPT, **SMALL, **{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"denoise": 0.5}, "denoise is 0.5, but there is no image to start from"),
        ({"regional": RegionalOptions()}, "regional says how regions count, but there are none"),
        ({"reference_size": "own"}, "there is no reference"),
        ({"reference_attention": "self"}, "there is no reference"),
        ({"reference_method": "index"}, "there is no reference"),
        ({"control_strength": 0.5}, "belong to a control_picture"),
        ({"regions": [RegionPrompt("a", mask=torch.zeros(8, 8))]}, "region 'a' is 0 everywhere"),
        ({"loras": [("nothing.safetensors", 1.0)]}, "nothing.safetensors: no such file"),
        ({"loras": ["nothing.safetensors"]}, "nothing.safetensors: no such file"),
        ({"loras": [5]}, "loras has 5"),
        ({"loras": "nothing.safetensors"}, "expected a list"),
    ],
)
def test_what_contradicts_itself_is_refused(options, message, pipeline):
    with pytest.raises(ValueError, match=message):
        pipeline(PROMPT, **SMALL, **options)


def test_a_lora_is_its_file_too(tmp_path, pipeline):
    from safetensors.torch import save_file

    name = "lora_unet_double_blocks_0_img_attn_qkv"
    layer = pipeline.transformer.double_blocks[0].img_attn.qkv
    down = torch.randn(2, layer.in_features, generator=torch.Generator().manual_seed(1)) * 0.1
    up = torch.randn(layer.out_features, 2, generator=torch.Generator().manual_seed(2)) * 0.1
    path = tmp_path / "a.safetensors"
    save_file({f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}, path)
    ways = [(path, 1.0), path, str(path), LoraUse(path), LoraUse(str(path), 1.0)]
    first, *others = [pipeline(PROMPT, loras=[way], **SMALL).images for way in ways]
    assert all(torch.equal(first, other) for other in others)
    assert not torch.equal(first, pipeline(PROMPT, **SMALL).images)
    with pytest.raises(ValueError, match="strength of .*a.safetensors is nan"):
        LoraUse(path, float("nan"))
