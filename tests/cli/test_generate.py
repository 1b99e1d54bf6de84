"""`generate`."""

from __future__ import annotations

import pytest
from PIL import Image

from flux_core import FluxPipeline
from flux_core.sampling.nag import NormalizedAttentionGuidance
from flux_core.sampling.tiles import Tiling
from tests.cli.command_line import call, call_apart


def test_generate_writes_a_picture(tmp_path):
    done = call_apart(
        "generate",
        "a blue square on white",
        "--steps",
        "2",
        "--width",
        "64",
        "--height",
        "64",
        "--precision",
        "fp8_scaled",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "output").glob("generate_*.png"))) == 1


OPTIONS = ("--steps", "2", "--width", "64", "--height", "64", "--precision", "fp32")


@pytest.fixture
def asked(monkeypatch) -> list[dict]:
    """What the pipeline is asked for; it draws."""
    seen: list[dict] = []
    drawing = FluxPipeline.__call__

    def call(self, prompt, **options):
        seen.append({"prompt": prompt, **options})
        return drawing(self, prompt, **options)

    monkeypatch.setattr(FluxPipeline, "__call__", call)
    return seen


def test_references_regions_and_nag_reach_the_pipeline(tmp_path, asked):
    Image.new("RGB", (20, 30), "red").save(tmp_path / "one.png")
    Image.new("RGB", (32, 32), "blue").save(tmp_path / "two.png")
    done = call(
        "generate",
        "a circle",
        *OPTIONS,
        *("--negative", "a square", "--nag-scale", "3"),
        *("--reference", "one.png", "--reference", "two.png"),
        *(
            "--region",
            "0,0,0.5,1: a red circle",
            "--region",
            " 0.5, 0.25, 0.5, 0.5 :blue: a square",
        ),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (options,) = asked
    assert options["negative_prompt"] == "a square"
    assert options["guidance_options"].nag == NormalizedAttentionGuidance(scale=3.0)
    assert [path.name for path in options["reference"]] == ["one.png", "two.png"]
    assert options["reference_size"] == "drawn"
    boxes = [(region.prompt, region.box) for region in options["regions"]]
    assert boxes == [
        ("a red circle", (0.0, 0.0, 0.5, 1.0)),
        ("blue: a square", (0.5, 0.25, 1.0, 0.75)),
    ]
    assert len(list((tmp_path / "output").glob("generate_*.png"))) == 1


def test_tiles_and_a_second_run(tmp_path, asked):
    done = call("generate", "a circle", *OPTIONS, "--tile", "80", "--hires", "1.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    tiles = Tiling(80, 16)
    assert asked[0]["tiles"] == tiles
    assert (asked[0]["hires"].scale, asked[0]["hires"].tiles) == (1.5, tiles)
    (path,) = (tmp_path / "output").glob("generate_*.png")
    assert Image.open(path).size == (96, 96)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--region", "0,0,1: a circle"), "--region 0,0,1: a circle: expected left, top"),
        (("--region", "a circle"), "--region a circle: expected left, top"),
        (("--region", "0,0,1,1:  "), "has no words behind its box"),
        (("--region", "0,0,2,1: a"), "the box is not inside of the picture"),
        (("--region", "0,0,0,1: a"), "width and height are above 0"),
        (("--hires", "2", "--hires-denoise", "0"), "denoise"),
        (("--tile", "70"), "the size of tiles is 70, expected a multiple of 16"),
        (("--hires", "0"), "the scale of hires is 0.0, expected 1 to 16"),
        (("--nag-scale", "-1"), "NAG's scale is -1.0"),
        (("--reference", "none.png"), "none.png"),
        (("--lora", "none.safetensors=2"), "none.safetensors"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(options, message, tmp_path):
    done = call("generate", "a circle", *OPTIONS, *options, cwd=tmp_path)
    missing = message.startswith("none.")
    assert done.returncode == (3 if missing else 2)
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "output").exists()


def test_what_is_not_said_fits_the_pocket_model(tmp_path, asked):
    """Windows of its own size in a second run that draws little anew; edits without cfg."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    for options in ((), ("--hires", "1.5"), ("--reference", "a.png"), ("--cfg", "3")):
        done = call("generate", "a circle", *OPTIONS, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    plain, hires, edit, guided = asked
    assert [options["cfg"] for options in asked] == [2.5, 2.5, 1.0, 3.0]
    assert (hires["hires"].denoise, hires["hires"].tiles) == (0.3, Tiling(256, 64))
    assert "tiles" not in hires and "hires" not in plain and "hires" not in edit | guided
