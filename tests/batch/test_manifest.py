"""The manifest after crashes, after others wrote to it, and where there is no room."""

from __future__ import annotations

import errno
import json

import pytest
from fluxfit.batch import manifest as manifest_module
from fluxfit.batch.manifest import NAME, Manifest, ManifestError

ENTRY = {"job": 24 * "a", "line": 2, "values": {}, "files": ["pictures/aa/x.png"], "pixels": ["0"]}
OTHER = {"job": 24 * "b", "line": 3, "values": {"prompt": "ein Löwe"}, "error": "no"}


@pytest.fixture
def path(tmp_path):
    manifest = Manifest(tmp_path)
    manifest.add(ENTRY)
    manifest.add(OTHER)
    manifest.close()
    return tmp_path / NAME


def entries(folder):
    manifest = Manifest(folder)
    try:
        return list(manifest.entries())
    finally:
        manifest.close()


def test_what_was_added_is_read_and_found_again(path):
    manifest = Manifest(path.parent)
    ((first, one), (second, other)) = manifest.entries()
    assert (one, other) == (ENTRY, OTHER)
    assert (manifest.at(second), manifest.at(first)) == (OTHER, ENTRY)
    assert manifest.at(manifest.add(ENTRY)) == ENTRY
    manifest.close()
    assert json.loads(path.read_text().splitlines()[0])["manifest"] == 1


def test_half_a_character_is_kept_as_json_escapes_it(path):
    manifest = Manifest(path.parent)
    entry = OTHER | {"values": {"prompt": "a\ud83db ö"}}
    assert manifest.at(manifest.add(entry)) == entry
    assert [one for _, one in manifest.entries()][-1] == entry
    manifest.close()
    assert "a\\ud83db ö" in path.read_text(encoding="utf-8")


def test_a_line_torn_anywhere_is_cut_away(path):
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = [entry for _, entry in entries(path.parent)]
        assert kept == [ENTRY, OTHER][: max(0, whole[:length].count(b"\n") - 1)]
        assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"job"', '"jab"', 1), "line 2: expected a job with its files"),
        (
            lambda text: text.replace("}\n{", "}\nnonsense\n{", 1),
            "line 2 is no JSON: .*take this line out",
        ),
        (lambda text: text.replace("}\n{", "}\n[]\n{", 1), "line 2: expected an object"),
        (lambda text: text.replace('"manifest": 1', '"manifest": 9'), "line 1: .* version 1"),
        (lambda text: "a,b\n1,2\n", "line 1 is no JSON: .*choose another folder"),
        (lambda text: text.replace('["0"]', "[]"), "line 2: expected a job with its files"),
        *(
            (lambda text, to=to: text.replace("pictures/aa", to), "line 2: expected a job")
            for to in ("..", "pictures/..", "pictures/aa/..", "/pictures/aa", "pictures/.a")
        ),
    ],
)
def test_what_somebody_else_wrote_is_refused_and_kept(change, message, path):
    path.write_text(change(path.read_text()))
    before = path.read_bytes()
    with pytest.raises(ManifestError, match=rf"{NAME}: {message}"):
        entries(path.parent)
    assert path.read_bytes() == before


def test_a_file_of_somebody_else_without_an_end_is_not_cut(tmp_path):
    (tmp_path / NAME).write_text("my notes")
    with pytest.raises(ManifestError, match="line 1: expected the first line of a manifest"):
        Manifest(tmp_path)
    assert (tmp_path / NAME).read_text() == "my notes"


def test_where_there_is_no_room_the_line_is_taken_back(path, monkeypatch):
    manifest, before = Manifest(path.parent), path.read_bytes()

    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(manifest_module.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            manifest.add(ENTRY)
    assert path.read_bytes() == before
    manifest.add(ENTRY)
    manifest.close()
    assert len(entries(path.parent)) == 3
