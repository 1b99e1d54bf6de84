"""What `generate` is asked for, as one JSON dict, and what is drawn of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fluxfit.cli import generate
from PIL import Image
from safetensors.torch import save_file

from flux_core import FluxPipeline
from flux_core.pocket import pocket_file
from flux_core.receipts import KEY, Receipt, pixels_hash
from tests import kin_files
from tests.cli.command_line import POCKET, call

SMALL = ("--steps", "1", "--width", "64", "--height", "48", "--precision", "fp32")
NET = "fluxfit_pocket_upscaler.safetensors"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLUXFIT_MODELS", raising=False)
    Image.new("RGB", (70, 100), "red").save("red.png")
    Image.new("L", (70, 100), 255).save("mask.png")
    Path("model.safetensors").write_bytes(b"")
    return tmp_path


def request(*arguments: str) -> dict:
    """The request of arguments, by way of JSON."""
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    return json.loads(json.dumps(generate.request_of(parser.parse_args(arguments))))


def lora_file(path: str) -> str:
    tensors = {"down": torch.randn(2, 128), "up": torch.randn(384, 2)}
    names = {"down": "lora_down", "up": "lora_up"}
    layer = FluxPipeline.from_pocket(device="cpu").transformer.double_blocks[0].img_attn.qkv
    tensors = {"down": torch.randn(2, layer.in_features), "up": torch.randn(layer.out_features, 2)}
    prefix = "lora_unet_double_blocks_0_img_attn_qkv"
    save_file({f"{prefix}.{names[k]}.weight": t * 0.1 for k, t in tensors.items()}, path)
    return path


class TestRequests:
    """What stands in one."""

    def test_what_is_not_said_is_that_of_the_pocket_model(self):
        asked = request("a circle")
        assert asked["prompts"] == ["a circle"] and asked["seeds"] == [0]
        sizes = {name: asked[name] for name in ("width", "height", "steps", "cfg", "shift")}
        pocket = {"width": 256, "height": 256, "steps": 30, "cfg": 2.5, "shift": "diffsynth"}
        assert sizes == pocket
        assert asked["memory"] == {"offload": "component"} and "controls" not in asked

    def test_or_of_the_family(self, tmp_path):
        files = kin_files.chroma_files(tmp_path)
        chroma = request("a", "--transformer", files["transformer"], "--vram", "8")
        assert (chroma["width"], chroma["steps"], chroma["cfg"]) == (1024, 28, 4.0)
        assert chroma["memory"] == {"offload": "auto", "vram": 8.0}
        kin_files.flux2_files(tmp_path / "klein")
        klein = request("a", "--transformer", "klein", "--steps", "7", "--offload", "stream")
        assert (klein["steps"], klein["cfg"], klein["shift"]) == (7, 1.0, "host")
        assert klein["model"]["transformer"] == str(tmp_path / "klein")

    @pytest.mark.parametrize(
        ("arguments", "seeds"),
        [
            (("--seed", "7"), [7]),
            (("--seed", "1,2,5..8"), [1, 2, 5, 6, 7, 8]),
            (("--seed", "7", "--count", "3"), [7, 8, 9]),
            (("--count", "2"), [0, 1]),
        ],
    )
    def test_seeds(self, arguments, seeds):
        assert request("a", *arguments)["seeds"] == seeds

    def test_every_prompt_has_every_seed(self):
        asked = request("a", "b", "--seed", "3..4")
        assert asked["prompts"] == ["a", "a", "b", "b"] and asked["seeds"] == [3, 4, 3, 4]

    def test_files_are_absolute_and_their_names_may_have_equals_signs(self, tmp_path):
        net = POCKET / "controlnet" / NET
        odd = tmp_path / "a=b.png"
        odd.write_bytes(Path("red.png").read_bytes())
        for option, expected in (
            (f"{net}=red.png", {}),
            (f"{net}=a=b.png", {"picture": str(odd)}),
            (f"{net}=a=b.png=0.5", {"picture": str(odd), "strength": 0.5}),
            (f"{net}=red.png=0.8@0.1..0.6", {"strength": 0.8, "start": 0.1, "end": 0.6}),
            (f"{NET}:canny=red.png=1@..0.5", {"start": 0.0, "end": 0.5, "mode": "canny"}),
        ):
            whole = {"model": str(net), "picture": str(tmp_path / "red.png")}
            if expected.get("strength") is None and "=1@" in option:
                whole["strength"] = 1.0
            assert request("a", "--control", option)["controls"] == [whole | expected]

    def test_names_are_those_in_the_folder_of_models_too(self, tmp_path, monkeypatch):
        models = tmp_path / "models"
        (models / "loras" / "styles").mkdir(parents=True)
        (models / "loras" / "styles" / "a.safetensors").write_bytes(b"")
        monkeypatch.setenv("FLUXFIT_MODELS", str(models))
        asked = request("a", "--lora", "styles/a.safetensors=0.5@0:1,0.5:0")
        lora = {"file": str(models / "loras/styles/a.safetensors"), "strength": 0.5}
        assert asked["loras"] == [lora | {"schedule": "0:1,0.5:0"}]
        with pytest.raises(
            FileNotFoundError, match=r"--lora ../a.safetensors: no such file, nor in"
        ):
            request("a", "--lora", "../a.safetensors")

    def test_a_picture_to_start_from_says_the_size(self):
        asked = request("a", "--image", "red.png", "--denoise", "0.5")
        assert (asked["width"], asked["height"]) == (64, 96)
        asked = request(
            *("a", "--image", "red.png", "--mask", "mask.png"),
            *("--width", "128", "--height", "128"),
        )
        assert (asked["width"], asked["height"]) == (128, 128)


#: Arguments that contradict themselves, or are out of range, and what is data of them.
WRONG = [
    (("--denoise", "0.5"), "--denoise 0.5 is given without --image"),
    (("--mask", "mask.png"), "--mask is given without --image"),
    (("--condition-mask", "mask.png"), "--condition-mask is given without --condition"),
    (("--control-end", "0.5"), "--control-end is given without --control-picture"),
    (("--reference-size", "own"), "--reference-size is given without --reference"),
    (("--image", "red.png", "--keep-pixels", "8"), "--keep-pixels is given without --mask"),
    (("--hires-denoise", "0.5"), "--hires-denoise is given without --hires"),
    (("--vram", "8", "--offload", "none"), "--vram is a budget, and --offload none asks for none"),
    (("--vram", "8", "--offload", "component"), "asks for none"),
    (("--vram", "nan"), "--vram is nan, expected gigabytes"),
    (("--ram", "-1"), "--ram is -1.0, expected gigabytes"),
    (("--vae", "model.safetensors"), "--vae is of a model, and there is no --transformer"),
    (("--text-precision", "foo"), "--text-precision is of a model, and there is no --transformer"),
    (("--tokenizers", "."), "--tokenizers is of a model, and there is no --transformer"),
    (("--image", "red.png"), "--image is drawn over at --denoise 1: give --denoise below 1"),
    (("--image", "red.png", "--denoise", "1", "--hires", "2"), "--image is drawn over"),
    (("--negative", "b", "--cfg", "1"), "--negative is read with --cfg above 1"),
    (("--negative", "b", "--reference", "red.png"), "--negative is read with --cfg above 1"),
    (("--redux", "a=red.png"), "--redux and --ip-adapter need --vision"),
    (("--vision", "model.safetensors"), "--vision is given without --redux"),
    (("--batch-size", "0"), "--batch-size is 0"),
    (("--seed", "x"), "'x' is no whole number"),
    (("--seed", ""), "--seed ''"),
    (("--seed", "-1"), "seed is -1"),
    (("--seed", "1,2", "--count", "2"), "--count 2 and 2 seeds: expected one of them"),
    (("--count", "0"), "--count is 0"),
    (("--seed", "1..99999999"), "--seed"),
    (("--control", f"{NET}"), "expected NET=PICTURE"),
    (("--control", f"{NET}=red.png=x"), "strength is 'x', not a number"),
    (("--control", f"{NET}=red.png=1@5"), "'5' is no span"),
    (("--control", f"{NET}:magic=red.png"), "mode is 'magic', expected one of canny"),
    (("--lora", "model.safetensors=nan"), "strength is nan"),
    (("--device", "nonsense"), "device is 'nonsense'"),
    (("--sampler", "magic"), "sampler is 'magic'"),
    (("--cfg-zero", "magic"), "cfg_zero is 'magic'"),
    (("--transformer", "model.safetensors"), "model.safetensors"),
    (("--out", "red.png"), "--out red.png exists already"),
    (("--out", "mask.jpg", "--overwrite"), "--overwrite is for --out NAME.png"),
    (("--out", "foo.jpg"), "--out foo.jpg: pictures are PNG, expected"),
    (("--out", "foo.WebP"), "--out foo.WebP: pictures are PNG, expected"),
    (("--out", ""), "argument --out: is empty, expected a name"),
    (("--out", "red.png/a"), "red.png is a file, expected a folder"),
]
if Path("/proc").is_dir():  # where nobody makes a folder
    WRONG += [
        (("--out", "/proc/foo"), "--out /proc/foo: nothing can be written in /proc"),
        (("--out", "/proc/a.png"), "--out /proc: nothing can be written in /proc"),
    ]
MISSING = [
    (("--image", "none.png", "--denoise", "0.5"), "--image none.png: no such file"),
    (("--control", "none.safetensors=red.png"), "--control none.safetensors: no such file"),
    (("--control", f"{NET}=none.png"), "--control none.png: no such file"),
    (("--transformer", "none.safetensors"), "--transformer none.safetensors: no such file"),
]


class TestTheCommand:
    """From arguments to files."""

    @pytest.mark.parametrize(("arguments", "message"), WRONG)
    def test_what_contradicts_itself_is_refused(self, arguments, message, folder):
        done = call("generate", "a circle", *SMALL, *arguments, cwd=folder)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
        assert not (folder / "output").exists()

    @pytest.mark.parametrize(("arguments", "message"), MISSING)
    def test_a_file_that_is_missing_has_a_status_of_its_own(self, arguments, message, folder):
        done = call("generate", "a circle", *arguments, "--json", cwd=folder)
        error = json.loads(done.stdout)["error"]
        assert done.returncode == 3 and error["kind"] == "missing"
        assert error["message"].startswith(message)

    def test_pictures_are_drawn_again_from_what_they_carry(self, folder):
        """All that a picture needs is in its receipt: several seeds, a LoRA, a ControlNet, a start,
        and prompts for parts."""
        lora_file("style.safetensors")
        options = (
            *("--lora", "style.safetensors=0.5", "--control", f"{NET}=red.png=0.5@0..0.9"),
            *("--image", "red.png", "--mask", "mask.png", "--denoise", "0.9"),
            *("--region", "0,0,0.5,1: a red circle", "--sampler", "euler_ancestral"),
            *("--nag-scale", "2", "--negative", "white", "--cfg", "2"),
        )
        seeds = ("--seed", "4..6", "--batch-size", "2", "--quiet")
        done = call("generate", "a circle", *SMALL, *options, *seeds, "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        data = json.loads(done.stdout)
        assert data["seeds"] == [4, 5, 6] and len(data["pictures"]) == 3 and not done.stderr
        numbers = []
        for path, others in zip(data["pictures"], ([4, 5], [4, 5], [6]), strict=True):
            saved = Image.open(path)
            receipt = Receipt.parse(saved.text[KEY])  # type: ignore[attr-defined]
            request = receipt.command["request"]
            assert request["seeds"] == others
            drawn = generate.draw(json.loads(json.dumps(request)))
            index = receipt.picture["index"]
            assert np.array_equal(np.asarray(saved), drawn.pixels[index])
            assert receipt.pixels == pixels_hash(drawn.pixels[index])
            numbers.append(receipt.pixels)
        assert len(set(numbers)) == 3

    def test_a_private_picture_says_no_prompt(self, folder):
        done = call("generate", "a secret", *SMALL, "--private", "--out", "a.png", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert b"secret" not in (folder / "a.png").read_bytes()
        assert KEY in Image.open(folder / "a.png").text  # type: ignore[attr-defined]

    def test_other_families_are_drawn_from_their_files(self, folder):
        files = kin_files.chroma_files(folder)
        chroma = [word for name, file in files.items() for word in (f"--{name}", file)]
        done = call("generate", "a", "b", *SMALL, *chroma, "--out", "c.png", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert Image.open("c_00001.png").size == Image.open("c_00002.png").size == (64, 48)
        kin_files.flux2_files(folder / "klein")
        klein = ("--transformer", "klein", "--reference", "red.png", "--reference-size", "own")
        done = call("generate", "a", *SMALL, *klein, "--out", "k.png", cwd=folder)
        assert done.returncode == 0, done.stderr
        (path,) = (line[9:] for line in done.stdout.splitlines() if line.startswith("picture: "))
        assert Path(path) == folder / "k.png" and Path(path).is_file()

    def test_parts_that_are_missing_are_named(self, folder):
        transformer = str(pocket_file("diffusion_models"))
        done = call("generate", "a", *SMALL, "--transformer", transformer, cwd=folder)
        assert done.returncode == 2 and "clip_l and t5 and vae are not given" in done.stderr

    def test_pictures_are_styles_by_redux(self, folder):
        redux = ("--redux", "fluxfit_pocket_redux.safetensors=red.png=0.7")
        vision = ("--vision", "fluxfit_pocket_siglip.safetensors")
        first, second = (
            call("generate", "a", *SMALL, *more, "--out", name, cwd=folder)
            for more, name in (((*redux, *vision), "r.png"), ((), "p.png"))
        )
        assert first.returncode == second.returncode == 0, first.stderr
        assert not np.array_equal(Image.open("r.png"), Image.open("p.png"))


def test_a_request_of_another_version_is_refused():
    with pytest.raises(ValueError, match="request has version 2, expected 1"):
        generate.draw(request("a") | {"generate": 2})


def test_a_file_that_was_moved_is_found_in_the_folder_of_models(folder, monkeypatch):
    asked = request("a", *SMALL, "--lora", lora_file("style.safetensors"))
    drawn = generate.draw(asked)
    (folder / "models" / "loras").mkdir(parents=True)
    Path("style.safetensors").rename(folder / "models" / "loras" / "style.safetensors")
    with pytest.raises(FileNotFoundError, match="style.safetensors: no such file"):
        generate.draw(asked)
    monkeypatch.setenv("FLUXFIT_MODELS", str(folder / "models"))
    assert torch.equal(generate.draw(asked).images, drawn.images)
