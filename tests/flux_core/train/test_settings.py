"""Settings files: every field checked, unknown ones refused with the nearest name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flux_core.train.config import ConfigError, TrainConfig
from flux_core.train.settings import from_mapping, read_config, to_mapping

TOML = """
name = "fox"
steps = 20
[model]
precision = "int8"
[lora]
rank = 8
targets = ["attention", 'single_blocks\\.[0-3]\\.linear1']
[[data]]
folder = "pictures"
resolutions = [512, 768]
[optimizer]
learning_rate = 1e-4
betas = [0.9, 0.99]
[offload]
mode = "stream"
vram_budget = 7.5
"""
YAML = """
name: fox
steps: 20
model: {precision: int8}
lora:
  rank: 8
  targets: [attention, 'single_blocks\\.[0-3]\\.linear1']
data:
  - folder: pictures
    resolutions: [512, 768]
optimizer: {learning_rate: 1e-4, betas: [0.9, 0.99]}
offload: {mode: stream, vram_budget: 7.5}
"""


def written(tmp_path: Path, text: str, suffix: str = ".toml") -> Path:
    path = tmp_path / f"run{suffix}"
    path.write_text(text)
    return path


def test_toml_yaml_and_json_say_the_same(tmp_path):
    config = read_config(written(tmp_path, TOML))
    assert config == read_config(written(tmp_path, YAML, ".yaml"))
    assert config == read_config(written(tmp_path, json.dumps(to_mapping(config)), ".json"))
    assert config.lora.rank == 8 and config.lora.strength == 8.0
    assert config.data[0].folder == str(tmp_path / "pictures")
    assert config.offload.policy.vram_budget == 7_500_000_000
    assert from_mapping(TrainConfig, to_mapping(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("rank = 8", "rnk = 8"), r"lora\.rnk is no setting; the nearest is 'rank'"),
        (("steps = 20", "step = 20"), r"step is no setting; the nearest is 'steps'"),
        (("[offload]", "[ofload]"), r"ofload is no setting; the nearest is 'offload'"),
        (("rank = 8", "rank = 'many'"), r"lora\.rank is 'many', expected a whole number"),
        (("rank = 8", "rank = 0"), r"lora\.rank is 0, expected 1 to 4096"),
        (("rank = 8", "rank = true"), r"lora\.rank is True, expected a whole number"),
        (('"int8"', '"int4"'), r"model\.precision is 'int4', expected one of"),
        (('"int8"', '"fp16"'), r"gradients overflow"),
        (('"stream"', '"streem"'), r"offload\.mode is 'streem', expected one of"),
        (("[[data]]", "[data]"), r"data is .* expected a list \(\[\[data\]\] in TOML\)"),
        (('folder = "pictures"\n', ""), r"data\.folder is missing"),
        (("[0.9, 0.99]", "[0.9]"), r"optimizer\.betas has 1 entries, expected 2"),
        (('name = "fox"', 'name = "../fox"'), r"name is '\.\./fox', expected a plain name"),
        (("resolutions = [512, 768]", "step = 50"), r"data\.step is 50, expected a multiple of 16"),
        (('precision = "int8"', 't5 = "a.safetensors"'), r"model needs .* what reads prompts"),
        (("[lora]", '[lora]\nformats = ["xlabs"]'), r"lora\.formats is 'xlabs'"),
        (("steps = 20", "steps ="), r"cannot be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    assert change[0] in TOML
    with pytest.raises(ConfigError, match=r"run\.toml: .*" + message):
        read_config(written(tmp_path, TOML.replace(*change)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.ini", "", "expected .toml, .yaml or .json"),
        ("a.yaml", "- 1\n- 2\n", "expected fields and values"),
        ("a.json", "{", "cannot be read"),
        ("a.toml", "a." * 50_000 + "a = 1", "too many dots"),
        ("a.toml", "[" + "a." * 50_000 + "a]", "too many dots"),
        ("a.TOML", "name = 'x'", r"there is no \[\[data\]\]"),
        ("a.toml", "name = 'x'", r"there is no \[\[data\]\]"),
    ],
)
def test_files_that_are_none(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / name)
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "nothing.toml")
