"""Pictures that are held out to validate with."""

from __future__ import annotations

from flux_core.train.config import ValidationConfig
from flux_core.train.data import split_validation
from tests.training_runs import data_config, read_folders, write_pictures


def test_what_is_held_out_is_not_trained_on(tmp_path):
    folder = write_pictures(tmp_path / "a")
    items, _ = read_folders(data_config(folder, resolutions=(64, 128)))
    rest, checked = split_validation(items, ValidationConfig().share, 0)
    assert len(checked) == 2 and len(rest) == 8
    assert not {i.content for i in rest} & {i.content for i in checked}
