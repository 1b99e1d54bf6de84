"""Pictures are drawn again from what they say of themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from fluxfit.nodes import headless
from PIL import Image

from flux_core.pocket import POCKET
from flux_core.receipts import KEY, png_bytes, read_png_texts

from .command_line import call

API = Path(__file__).resolve().parents[2] / "workflows" / "api"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """A picture of the pocket model, small, of two of its kind."""
    folder = tmp_path_factory.mktemp("drawn")
    data = json.loads((API / "text_to_image.json").read_text())
    for item in data.values():
        if item["class_type"] == "FluxSampler":
            item["inputs"]["steps"] = 2
        if item["class_type"] == "EmptySD3LatentImage":
            item["inputs"] |= {"width": 64, "height": 96, "batch_size": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder / headless.saved_images(headless.run(headless.from_api(data)))[1]


def run_command(*arguments: str) -> tuple[int, str, str]:
    """Status, what is said, and what is said of errors."""
    done = call(*arguments, cwd=Path.cwd())
    return done.returncode, done.stdout, done.stderr


def changed(path: Path, folder: Path, receipt: dict | None = None, **texts: str | None) -> Path:
    """A copy of a picture with other texts, and other fields in its receipt."""
    pixels, known = read_png_texts(path)
    known |= {name: text for name, text in texts.items() if text is not None}
    for name in [name for name, text in texts.items() if text is None]:
        del known[name]
    if receipt is not None:
        known[KEY] = json.dumps(json.loads(known[KEY]) | receipt)
    copy = folder / path.name
    copy.write_bytes(png_bytes(pixels, known))
    return copy


def test_a_picture_has_the_same_bits_again(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_command("replay", str(drawn), "--out", "again")
    assert code == 0 and f"{drawn}: same bits" in out
    (again,) = (tmp_path / "again").glob("*.png")
    assert np.array_equal(read_png_texts(again)[0], read_png_texts(drawn)[0])
    assert run_command("replay", str(again))[0] == 0


def test_json_says_the_same(drawn):
    code, out, _ = run_command("replay", str(drawn), "--json")
    (result,) = json.loads(out)["pictures"]
    assert code == 0 and result["same"] and result["largest"] == 0 and result["psnr"] is None


def test_a_stock_picture_is_drawn_as_far_as_its_graph_goes(drawn, tmp_path):
    code, out, _ = run_command("replay", str(changed(drawn, tmp_path, **{KEY: None})))
    assert code == 0 and "same bits" in out and "no receipt" in out


def test_what_is_otherwise_is_told(drawn, tmp_path):
    pixels, texts = read_png_texts(drawn)
    receipt = json.loads(texts[KEY])
    for entry in receipt["did"]:
        if entry["kind"] == "draw":
            entry["seed"] = 3
    about = {"did": receipt["did"], "torch": "1.0", "fluxfit": "0.0.1"}
    pixels = pixels.copy()
    pixels[0, 0, 0] ^= 8
    copy = tmp_path / "a.png"
    copy.write_bytes(png_bytes(pixels, texts | {KEY: json.dumps(receipt | about)}))
    code, out, _ = run_command("replay", str(copy))
    assert code == 1 and "differs by at most 8 of 255" in out
    for words in ("were changed after", "torch is", "was 0.0.1", "seed is 7, was 3"):
        assert words in out


@pytest.mark.parametrize(
    ("texts", "receipt", "status", "words"),
    [
        ({"prompt": None}, None, 2, "does not say what was asked for"),
        ({"prompt": "{"}, None, 2, "cannot be read"),
        ({"prompt": "{}"}, None, 2, "neither a workflow"),
        ({}, {"version": 7}, 2, "version 7, expected 1"),
        ({}, {"did": 7}, 2, "did is int"),
        ({KEY: "[]"}, None, 2, "version None"),
        ({}, {"command": {"name": "generate", "request": {"generate": 1}}}, 2, "is damaged"),
    ],
)
def test_bad_pictures_are_refused_in_words(drawn, tmp_path, texts, receipt, status, words):
    code, _, err = run_command("replay", str(changed(drawn, tmp_path, receipt, **texts)))
    assert code == status and words in err and str(tmp_path) in err


def test_a_picture_that_was_cut_is_told(drawn, tmp_path):
    pixels, texts = read_png_texts(drawn)
    (tmp_path / "cut.png").write_bytes(png_bytes(pixels[:64], texts))
    code, _, err = run_command("replay", str(tmp_path / "cut.png"))
    assert code == 2 and "64x64 pixels, and its graph draws 64x96" in err


def test_what_is_no_picture_does_not_stop_the_others(drawn, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"none")
    code, out, _ = run_command(
        "replay", str(tmp_path / "broken.png"), str(tmp_path / "none.png"), str(drawn)
    )
    assert code == 2 and "broken.png: cannot be read as a picture" in out
    assert "none.png: no such file" in out and f"{drawn}: same bits" in out


@pytest.fixture
def mine(drawn, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A picture whose VAE was a file of one's own, and the folder of that."""
    folder = tmp_path / "models" / "vae"
    shutil.copytree(POCKET / "vae", folder)
    (file,) = folder.glob("*.safetensors")
    file.rename(folder / "mine.safetensors")
    monkeypatch.setenv("FLUXFIT_MODELS", str(tmp_path / "models"))
    _, texts = read_png_texts(drawn)
    name = "fluxfit_pocket_vae.safetensors"
    texts = {key: text.replace(name, "mine.safetensors") for key, text in texts.items()}
    return changed(drawn, tmp_path, **texts), folder


def test_a_model_under_another_name_is_known_by_its_content(mine):
    picture, folder = mine
    (folder / "mine.safetensors").rename(folder / "other.safetensors")
    code, out, _ = run_command("replay", str(picture))
    assert code == 0 and "was taken for mine.safetensors" in out


def test_a_model_that_is_missing_is_named_with_its_node_and_hash(mine, monkeypatch):
    picture, folder = mine
    monkeypatch.setattr(
        "fluxfit.nodes.headless.replay.same_content", lambda file, digest, size: None
    )
    (folder / "mine.safetensors").unlink()
    code, _, err = run_command("replay", str(picture))
    assert code == 3 and "FluxLoaderFP8" in err and "mine.safetensors" in err and "sha256 4" in err


def test_a_model_of_other_content_under_its_name_is_told(mine, monkeypatch):
    picture, folder = mine
    file = folder / "mine.safetensors"
    data = bytearray(file.read_bytes())
    data[-2] ^= 0xFF
    file.write_bytes(data)
    monkeypatch.setattr(
        "fluxfit.nodes.headless.replay.same_content", lambda file, digest, size: None
    )
    _, out, _ = run_command("replay", str(picture))
    assert "mine.safetensors has other content than it had" in out


def test_webp_of_the_host_is_read_too(drawn, tmp_path):
    pixels, texts = read_png_texts(drawn)
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0110] = "prompt:" + texts["prompt"]
    picture.save(tmp_path / "a.webp", exif=exif, lossless=True)
    code, out, _ = run_command("replay", str(tmp_path / "a.webp"))
    assert code == 0 and "same bits" in out


def test_inspect_says_how_a_picture_was_made(drawn, tmp_path):
    code, out, _ = run_command("inspect", str(drawn))
    assert code == 0
    for words in (
        "64x96",
        "drawn by fluxfit_pocket.safetensors (fp8_scaled)",
        "seed 7, euler, simple, 2 steps",
        "file fluxfit_pocket_vae.safetensors: sha256 4",
        "policy none",
        "pixels as saved",
        "a graph of 8 nodes",
    ):
        assert words in out, words
    data = json.loads(run_command("inspect", str(drawn), "--json")[1])
    assert data["receipt"]["picture"] == {"node": "8", "index": 1, "of": 2}
    code, out, _ = run_command("inspect", str(changed(drawn, tmp_path, prompt=None)))
    assert code == 0 and "no graph" in out
    code, out, _ = run_command("inspect", str(changed(drawn, tmp_path, **{KEY: None})))
    assert code == 0 and "no receipt" in out


def test_private_pictures_hold_no_prompt_and_no_path(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, texts = read_png_texts(drawn)
    (tmp_path / "graph.json").write_text(texts["prompt"])
    assert run_command("run", "graph.json", "--private")[0] == 0
    picture = next(tmp_path.rglob("*.png"))
    _, texts = read_png_texts(picture)
    assert set(texts) == {KEY} and "heart" not in texts[KEY] and "/" not in texts[KEY]
    code, _, err = run_command("replay", str(picture))
    assert code == 2 and "--private" in err


def test_pictures_of_generate_are_drawn_again_from_its_request(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ("--steps", "2", "--width", "64", "--height", "48")
    Image.new("RGB", (64, 48), "red").save("red.png")
    for name, options in (
        ("plain", ("--seed", "3,4")),
        ("image", ("--image", "red.png", "--denoise", "0.6")),
        ("int8", ("--precision", "int8", "--offload", "stream")),
    ):
        assert run_command("generate", "a red circle", *small, *options, "--out", name)[0] == 0
    pictures = sorted(str(path) for path in tmp_path.glob("*/*.png"))
    code, out, _ = run_command("replay", *pictures)
    assert code == 0 and out.count("same bits") == len(pictures) == 4
    code, out, _ = run_command("inspect", pictures[0])
    assert code == 0 and "command generate" in out
    Image.new("RGB", (64, 48), "blue").save("red.png")
    code, out, _ = run_command("replay", str(next((tmp_path / "image").iterdir())))
    assert code == 1 and "differs" in out
    assert "red.png has other content than it had" in out
    (tmp_path / "red.png").unlink()
    code, _, err = run_command("replay", str(next((tmp_path / "image").iterdir())))
    assert code == 3 and "red.png" in err and "image/generate_00001.png" in err


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"command": {"name": "paint"}}, "made by command 'paint', expected generate"),
        ({"command": {"name": "generate"}}, "its request is damaged (it is None)"),
        ({"command": {"name": "generate", "request": []}}, "its request is damaged"),
        ({"command": {"name": "generate", "request": {"prompts": 3}}}, ""),
    ],
)
def test_odd_commands_in_pictures_are_refused(drawn, tmp_path, about, words):
    code, _, err = run_command("replay", str(changed(drawn, tmp_path, about)))
    assert code in (1, 2) and words in err and "Traceback" not in err


def test_a_model_of_generate_under_another_name_is_known_by_its_content(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (POCKET / "vae").glob("*.safetensors"):
        shutil.copy(file, tmp_path / "mine.safetensors")
    files = {
        "transformer": next((POCKET / "diffusion_models").glob("*.safetensors")),
        "clip-l": next((POCKET / "text_encoders").glob("*clip_l.safetensors")),
        "t5": next((POCKET / "text_encoders").glob("*t5.safetensors")),
        "vae": tmp_path / "mine.safetensors",
    }
    options = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    small = ("--steps", "1", "--width", "64", "--height", "48", "--out", "a.png")
    code, _, err = run_command("generate", "a red circle", *options, *small)
    assert code == 0, err
    (tmp_path / "mine.safetensors").rename(tmp_path / "other.safetensors")
    code, out, _ = run_command("replay", "a.png")
    assert code == 0 and "other.safetensors was taken for mine.safetensors" in out
