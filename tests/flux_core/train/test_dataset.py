"""Folders of pictures with captions and masks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from flux_core.train.buckets import Size
from flux_core.train.config import ConfigError
from flux_core.train.dataset import mask_of_size, picture_of_size
from tests.training_runs import data_config, read_folders, write_pictures


def test_text_files(tmp_path):
    folder = write_pictures(tmp_path / "a", sizes=((64, 64), (200, 100)))
    (folder / "1.txt").write_text("  zwei\n")
    items, problems = read_folders(data_config(folder, trigger="abc", repeats=3))
    assert [item.caption for item in items][:2] == ["abc, red, number 0", "abc, zwei"]
    assert [item.size for item in items][:2] == [Size(64, 64), Size(80, 48)]
    assert all(item.repeats == 3 for item in items) and not problems.skipped


def test_several_resolutions(tmp_path):
    items, _ = read_folders(data_config(write_pictures(tmp_path / "a"), resolutions=(64, 128)))
    assert len(items) == 10 and {item.size for item in items} == {(64, 64), (128, 128)}


def test_a_table_of_diffsynth_studio(tmp_path):
    folder = write_pictures(tmp_path / "a", count=2)
    (folder / "metadata.csv").write_text('file_name,text\n1.png,"a, b"\n0.png,c\n')
    items, _ = read_folders(data_config(folder))
    assert [(i.picture.name, i.caption) for i in items] == [("1.png", "a, b"), ("0.png", "c")]


def test_lines_of_json(tmp_path):
    folder = write_pictures(tmp_path / "a", count=2)
    Image.new("L", (64, 64)).save(folder / "m.png")
    rows = [
        {"image": "1.png", "caption": "x", "mask": "m.png"},
        {"file_name": "0.png", "prompt": "y"},
    ]
    (folder / "about.jsonl").write_text("\n".join(map(json.dumps, rows)))
    items, _ = read_folders(data_config(folder, metadata="about.jsonl"))
    assert [(i.caption, bool(i.mask)) for i in items] == [("x", True), ("y", False)]


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", "\ufefffile_name,text\r\n0.png,x\r\n1.png,y\r\n"),
        ("metadata.csv", 'file_name, text\n0.png, "x"\n1.png, y\n'),
        ("metadata.csv", "File_Name;Text\n0.png;x\n1.png;y\n"),
        ("metadata.csv", "sep=;\r\nimage;prompt\r\n0.png;x\r\n1.png;y\r\n"),
        ("metadata.csv", "sep=,\nimage,prompt\n0.png,x\n1.png,y\n"),
        ("t.tsv", "file\tcaption\n0.png\tx\n1.png\ty\n"),
        ("T.CSV", "path,text,other\n0.png,x,1\n1.png,y,2\n"),
        ("T.JSONL", '{"Image": "0.png", "TEXT": "x"}\n\n{"file": "1.png", "text": "y"}\n'),
    ],
)
def test_tables_as_people_write_them(name, table, tmp_path):
    folder = write_pictures(tmp_path / "a", count=2)
    (folder / name).write_text(table, newline="")
    items, _ = read_folders(data_config(folder, metadata=name))
    assert [item.caption for item in items] == ["x", "y"]


def test_broken_pictures_and_empty_captions_are_named(tmp_path):
    folder = write_pictures(tmp_path / "a")
    (folder / "2.png").write_bytes(b"no picture")
    (folder / "3.txt").unlink()
    with pytest.raises(ConfigError, match=r"2 pictures .*2\.png: cannot be opened.*3\.png: has no"):
        read_folders(data_config(folder))
    items, problems = read_folders(data_config(folder, broken="skip", empty_captions="use"))
    assert len(items) == 4 and len(problems.skipped) == 1 and "2.png" in problems.skipped[0]
    items, problems = read_folders(data_config(folder, broken="skip", empty_captions="skip"))
    assert len(items) == 3 and len(problems.skipped) == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file_name,text\n../../secret.png,x\n", "leaves the folder"),
        ("file_name,text,mask\n0.png,x,../../secret.png\n", "leaves the folder"),
        ("name,text\n0.png,x\n", "has none of file_name.*, but name, text"),
        ("file_name,text\n0.png,a cat, a dog\n", "entry 1: has 3 cells in 2 columns.*quotes"),
        ('file_name,text\n0.png,"a cat\n1.png,a dog\n', "metadata.csv: entry 1: unexpected end"),
        ('file_name,text\n0.png,"big" cat\n', "metadata.csv: entry 1: ',' expected after"),
        ("file_name,text\nnothing.png,x\n", "nothing.png: cannot be opened"),
    ],
)
def test_bad_tables(tmp_path, table, message):
    folder = write_pictures(tmp_path / "a", count=1)
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(ConfigError, match=message):
        read_folders(data_config(folder))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "0.png", "text": ["one", "two"]}', r"entry 3: \['one', 'two'\] is no text"),
        ('{"file_name": "0.png", "text": {"en": "x"}}', "entry 3: .*is no text"),
        ('{"file_name": "0.png", "text": true}', "entry 3: True is no text"),
        ('{"file_name": ["0.png"], "text": "x"}', "entry 3: .*is no text"),
        ('{"file_name": "0.png", "text": "x", "mask": 3}', "entry 3: 3 is no text"),
        ('["0.png"]', "line 3: expected an object"),
        ('{"file_name": ', "line 3: Expecting value"),
    ],
)
def test_bad_lines_of_json_are_named_by_their_number(tmp_path, line, message):
    folder = write_pictures(tmp_path / "a", count=1)
    good = '{"file_name": "0.png", "text": "x"}'
    (folder / "metadata.jsonl").write_text("\n".join([good, good, line, good]))
    with pytest.raises(ConfigError, match=message):
        read_folders(data_config(folder))


def test_a_table_of_another_ending_is_refused(tmp_path):
    folder = write_pictures(tmp_path / "a", count=1)
    (folder / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(ConfigError, match="ends with '.xlsx', expected .csv"):
        read_folders(data_config(folder, metadata="t.xlsx"))


def test_what_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="is no folder"):
        read_folders(data_config(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="no such file"):
        read_folders(data_config(write_pictures(tmp_path / "a"), metadata="x.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no picture to train on"):
        read_folders(data_config(tmp_path / "empty"))


def test_pictures_are_upright_on_white_and_cut_around_their_middle(tmp_path):
    wide = np.zeros((32, 64, 4), np.uint8)
    wide[:, 16:48] = (255, 0, 0, 255)
    Image.fromarray(wide).save(tmp_path / "a.png")
    picture = picture_of_size(tmp_path / "a.png", Size(32, 32))
    assert picture.shape == (1, 32, 32, 3)
    assert torch.equal(picture[0, 16, 16], torch.tensor([1.0, 0.0, 0.0]))
    full = picture_of_size(tmp_path / "a.png", Size(64, 32))
    assert torch.equal(full[0, 16, 2], torch.ones(3))  # nothing there is white
    turned = Image.fromarray(np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "b.jpg", exif=exif)
    with Image.open(tmp_path / "b.jpg") as opened:
        assert opened.size == (16, 8)
    items, _ = read_folders(replace(data_config(tmp_path, empty_captions="use"), max_aspect=2.0))
    assert items[1].size.height > items[1].size.width


def test_masks(tmp_path):
    folder = write_pictures(tmp_path / "a", count=1)
    half = np.zeros((64, 64), np.uint8)
    half[:, 32:] = 255
    Image.fromarray(half).save(folder / "0.mask.png")
    items, _ = read_folders(data_config(folder))
    assert len(items) == 1 and items[0].mask is not None
    mask = mask_of_size(items[0].mask, items[0].size)
    assert mask.shape == (1, 8, 8)
    assert float(mask[..., :4].sum()) == 0 and float(mask[..., 4:].mean()) == 1
    assert read_folders(data_config(folder, masks=False))[0][0].mask is None
