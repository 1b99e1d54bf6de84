"""Pictures, captions, buckets and the cache."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flux_core.train.buckets import Batches, Size, bucket_for, buckets
from flux_core.train.cache import Store, fingerprint
from flux_core.train.config import ConfigError, DataConfig, ValidationConfig
from flux_core.train.data import held_out
from flux_core.train.dataset import Faults, open_mask, open_picture, read_items
from tests import training_runs as lessons


def data(folder, **more) -> DataConfig:
    return DataConfig(folder=str(folder), **({"resolutions": (64,), "step": 16} | more))


def read(*configs: DataConfig):
    faults = Faults()
    return read_items(configs, faults), faults


class TestBuckets:
    @given(
        st.sampled_from([256, 512, 768, 1024]), st.sampled_from([16, 32, 64]),
        st.floats(1, 4), st.integers(1, 4000), st.integers(1, 4000),
    )  # fmt: skip
    def test_sizes_keep_their_promises(self, side, step, aspect, width, height):
        sizes = buckets(side, step, aspect)
        assert Size(side, side) in sizes
        for size in sizes:
            assert size.width % step == size.height % step == 0
            assert size.width * size.height <= side * side
            assert max(size) <= aspect * min(size)
        chosen = bucket_for(width, height, sizes)
        off = abs(math.log(chosen.width / chosen.height * height / width))
        assert all(off <= abs(math.log(s.width / s.height * height / width)) + 1e-9 for s in sizes)

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=20),
           st.integers(1, 5), st.integers(0, 9))  # fmt: skip
    def test_an_epoch_has_every_picture_as_often_as_asked(self, items, batch, seed):
        kinds, repeats = [kind for kind, _ in items], [count for _, count in items]
        made = Batches(kinds, repeats, batch, seed)
        for epoch in (0, 3):
            found = made.epoch(epoch)
            assert len(found) == made.count
            for some in found:
                assert len({kinds[i] for i in some}) == 1 and len(some) <= batch
            flat = [i for some in found for i in some]
            assert sorted(flat) == sorted(i for i, n in enumerate(repeats) for _ in range(n))
        again = Batches(kinds, repeats, batch, seed)
        assert [again.at(i) for i in (made.count, 0)] == [made.epoch(1)[0], made.epoch(0)[0]]

    def test_epochs_and_seeds_differ(self):
        made = Batches([0] * 50, [1] * 50, 1, 0)
        assert made.epoch(0) != made.epoch(1) != Batches([0] * 50, [1] * 50, 1, 1).epoch(1)


class TestReading:
    def test_text_files(self, tmp_path):
        folder = lessons.draw_pictures(tmp_path / "a", sizes=((64, 64), (200, 100)))
        (folder / "1.txt").write_text("  zwei\n")
        items, faults = read(data(folder, trigger="abc", repeats=3))
        assert [item.caption for item in items][:2] == ["abc, red, number 0", "abc, zwei"]
        assert [item.size for item in items][:2] == [Size(64, 64), Size(80, 48)]
        assert all(item.repeats == 3 for item in items) and not faults.found

    def test_several_resolutions(self, tmp_path):
        items, _ = read(data(lessons.draw_pictures(tmp_path / "a"), resolutions=(64, 128)))
        assert len(items) == 10 and {item.size for item in items} == {(64, 64), (128, 128)}

    def test_a_table_of_diffsynth_studio(self, tmp_path):
        folder = lessons.draw_pictures(tmp_path / "a", count=2)
        (folder / "metadata.csv").write_text('file_name,text\n1.png,"a, b"\n0.png,c\n')
        items, _ = read(data(folder))
        assert [(i.picture.name, i.caption) for i in items] == [("1.png", "a, b"), ("0.png", "c")]

    def test_lines_of_json(self, tmp_path):
        folder = lessons.draw_pictures(tmp_path / "a", count=2)
        Image.new("L", (64, 64)).save(folder / "m.png")
        rows = [
            {"image": "1.png", "caption": "x", "mask": "m.png"},
            {"file_name": "0.png", "prompt": "y"},
        ]
        (folder / "about.jsonl").write_text("\n".join(map(json.dumps, rows)))
        items, _ = read(data(folder, metadata="about.jsonl"))
        assert [(i.caption, bool(i.mask)) for i in items] == [("x", True), ("y", False)]

    def test_broken_pictures_and_empty_captions_are_named(self, tmp_path):
        folder = lessons.draw_pictures(tmp_path / "a")
        (folder / "2.png").write_bytes(b"no picture")
        (folder / "3.txt").unlink()
        with pytest.raises(
            ConfigError, match=r"2 pictures .*2\.png: cannot be opened.*3\.png: has no"
        ):
            read(data(folder))
        items, faults = read(data(folder, broken="skip", empty_captions="use"))
        assert len(items) == 4 and len(faults.found) == 1 and "2.png" in faults.found[0]
        items, faults = read(data(folder, broken="skip", empty_captions="skip"))
        assert len(items) == 3 and len(faults.found) == 2

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ("file_name,text\n../../secret.png,x\n", "leaves the folder"),
            ("file_name,text,mask\n0.png,x,../../secret.png\n", "leaves the folder"),
            ("name,text\n0.png,x\n", "has none of file_name"),
            ("file_name,text\nnothing.png,x\n", "nothing.png: cannot be opened"),
        ],
    )
    def test_bad_tables(self, tmp_path, table, message):
        folder = lessons.draw_pictures(tmp_path / "a", count=1)
        (folder / "metadata.csv").write_text(table)
        with pytest.raises(ConfigError, match=message):
            read(data(folder))

    def test_what_is_not_there(self, tmp_path):
        with pytest.raises(ConfigError, match="is no folder"):
            read(data(tmp_path / "nothing"))
        with pytest.raises(ConfigError, match="no such file"):
            read(data(lessons.draw_pictures(tmp_path / "a"), metadata="x.csv"))
        (tmp_path / "empty").mkdir()
        with pytest.raises(ConfigError, match="no picture to train on"):
            read(data(tmp_path / "empty"))

    def test_pictures_are_upright_on_white_and_cut_around_their_middle(self, tmp_path):
        wide = np.zeros((32, 64, 4), np.uint8)
        wide[:, 16:48] = (255, 0, 0, 255)
        Image.fromarray(wide).save(tmp_path / "a.png")
        found = open_picture(tmp_path / "a.png", Size(32, 32))
        assert found.shape == (1, 32, 32, 3)
        assert torch.equal(found[0, 16, 16], torch.tensor([1.0, 0.0, 0.0]))
        full = open_picture(tmp_path / "a.png", Size(64, 32))
        assert torch.equal(full[0, 16, 2], torch.ones(3))  # nothing there is white
        turned = Image.fromarray(np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3))
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(tmp_path / "b.jpg", exif=exif)
        with Image.open(tmp_path / "b.jpg") as opened:
            assert opened.size == (16, 8)
        items, _ = read(replace(data(tmp_path, empty_captions="use"), max_aspect=2.0))
        assert items[1].size.height > items[1].size.width

    def test_masks(self, tmp_path):
        folder = lessons.draw_pictures(tmp_path / "a", count=1)
        half = np.zeros((64, 64), np.uint8)
        half[:, 32:] = 255
        Image.fromarray(half).save(folder / "0.mask.png")
        items, _ = read(data(folder))
        assert len(items) == 1 and items[0].mask is not None
        mask = open_mask(items[0].mask, items[0].size)
        assert mask.shape == (1, 8, 8)
        assert float(mask[..., :4].sum()) == 0 and float(mask[..., 4:].mean()) == 1
        assert read(data(folder, masks=False))[0][0].mask is None

    def test_what_is_held_out_is_not_trained_on(self, tmp_path):
        folder = lessons.draw_pictures(tmp_path / "a")
        items, _ = read(data(folder, resolutions=(64, 128)))
        rest, checked = held_out(items, ValidationConfig().share, 0)
        assert len(checked) == 2 and len(rest) == 8
        assert not {i.content for i in rest} & {i.content for i in checked}


class TestCache:
    def test_cached_equals_uncached(self, tmp_path):
        losses = {}
        for name, cache in (("memory", "none"), ("files", ""), ("again", str(tmp_path / "c"))):
            config = lessons.config(tmp_path, name=name, cache=cache, steps=3)
            losses[name] = lessons.trainer(config).run().history.losses
        told = []
        again = lessons.config(tmp_path, name="reused", cache=str(tmp_path / "c"), steps=3)
        run = lessons.trainer(again, told=lambda news: told.append(news.what))
        losses["reused"] = run.run().history.losses
        assert "encoding pictures" not in told and "encoding captions" not in told
        assert all(found == losses["memory"] for found in losses.values())

    def test_a_broken_file_is_made_anew(self, tmp_path):
        config = lessons.config(tmp_path, steps=1)
        expected = lessons.trainer(config).run().history.losses
        files = sorted((tmp_path / "cache").rglob("*.safetensors"))
        for file in files:
            file.write_bytes(file.read_bytes()[:-9])
        store = Store(tmp_path / "cache")
        assert store.get(files[0].stem) is None and not files[0].is_file()
        for file in files:
            file.unlink(missing_ok=True)
        found = lessons.trainer(replace(config, name="second")).run().history.losses
        assert found == expected

    def test_another_model_or_picture_has_another_key(self, tmp_path):
        layer = torch.nn.Linear(2000, 3)
        before = fingerprint(layer)
        assert fingerprint(layer) == before
        with torch.no_grad():
            layer.weight[0, 0] += 1e-3
        assert fingerprint(layer) != before
        items = [i for c in "ab" for i in read(data(lessons.draw_pictures(tmp_path / c)))[0]]
        assert items[0].content == items[5].content != items[1].content

    def test_a_full_disk_leaves_nothing_half_written(self, tmp_path, monkeypatch):
        def full(tensors, path):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("flux_core.train.cache.save_file", full)
        with pytest.raises(OSError, match="No space left"):
            lessons.trainer(lessons.config(tmp_path)).run()
        assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
