"""The doors of files: one error coming in, whole files going out, names that stay below."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from flux_core.errors import LONGEST, CheckpointError, ConfigError, FileError
from flux_core.files import (
    below,
    folders_below,
    is_hidden,
    locked_folder,
    read_json,
    read_text,
    reading,
    write_new,
    write_text,
    writing,
)


@pytest.mark.parametrize(
    "fault",
    [
        KeyError("id"),
        IndexError("list index out of range"),
        TypeError("'NoneType' object is not iterable"),
        AttributeError("no attribute 'x'"),
        RuntimeError("shape '[3]' is invalid\nfor input"),
        RecursionError("maximum recursion depth"),
        MemoryError(),
        OverflowError("too large"),
        ZeroDivisionError("division by zero"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
        OSError(errno.EIO, "Input/output error"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        CheckpointError("lacks two tensors"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_whatever_goes_wrong_is_one_error_of_one_line_with_the_files_name(fault):
    refused = pytest.raises(CheckpointError, match="^model.safetensors: ")
    with refused as raised, reading("model.safetensors", "a model"):
        raise fault
    assert "\n" not in str(raised.value) and str(raised.value) != "model.safetensors: "


@pytest.mark.parametrize("message", ["range end index 2 out of range\nfor a slice", ""])
def test_a_panic_of_a_library_in_rust_is_an_error_as_well(message):
    panic = type("PanicException", (BaseException,), {})
    refused = pytest.raises(ConfigError, match="^a.json: cannot be read as a tokenizer")
    with refused as raised, reading("a.json", "a tokenizer", ConfigError):
        raise panic(message)
    assert "\n" not in str(raised.value) and isinstance(raised.value.__cause__, panic)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupts_pass(interrupt):
    with pytest.raises(interrupt), reading("m", "a model"):
        raise interrupt


def test_messages_have_an_end():
    error = FileError("x" * 10**6 + "\n\x1b[31m")
    assert len(str(error)) <= LONGEST and "\x1b" not in str(FileError("a\x1b[31m\nb"))


@pytest.mark.parametrize(
    "raw, text",
    [
        (b"a caption", "a caption"),
        (b"\xef\xbb\xbfa caption", "a caption"),
        ("ein Bär".encode(), "ein Bär"),
        (b"", ""),
    ],
)
def test_text_with_or_without_its_mark(raw, text, tmp_path):
    (tmp_path / "t").write_bytes(raw)
    assert read_text(tmp_path / "t") == text


@pytest.mark.parametrize(
    "raw", [b"it\x92s", "Bär".encode("utf-16"), b"\xfe\xff\x00a", b"\xff\xfe", b"\x80"]
)
def test_text_of_another_encoding_is_told(raw, tmp_path):
    (tmp_path / "t").write_bytes(raw)
    with pytest.raises(ConfigError, match="no UTF-8 text"):
        read_text(tmp_path / "t")
    with pytest.raises(ConfigError, match="is a folder"):
        read_text(tmp_path)
    with pytest.raises(ConfigError, match="longer than"):
        read_text(tmp_path / "t", limit=0)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\x89PNG\r\n\x1a\n\0", "is a PNG picture"),
        (b"\xff\xd8\xff\xe0", "is a JPEG picture"),
        (b"\x1f\x8b\x08\0", "is packed by gzip"),
        (b"PK\x03\x04\x14", "is a zip archive"),
        (b"GGUF\x03\0\0\0", "is a GGUF file"),
    ],
)
def test_a_file_that_is_no_text_is_told_what_it_is(raw, message, tmp_path):
    (tmp_path / "t").write_bytes(raw)
    for read in (read_text, lambda path: read_json(path, "a plan")):
        with pytest.raises(ConfigError, match=message):
            read(tmp_path / "t")


@pytest.mark.parametrize("raw", ["{", "NaN", '{"a": Infinity}', "[" * 100_000, "", "1" * 5000])
def test_json_that_is_none(raw, tmp_path):
    (tmp_path / "j").write_text(raw)
    with pytest.raises(ConfigError, match="cannot be read as a plan"):
        read_json(tmp_path / "j", "a plan")


class TestNames:
    @pytest.mark.parametrize(
        "name", ["a", "a.png", "sub/a.png", "sub\\a.png", "./a", "ä.png", "a b", "console.png"]
    )
    def test_names_below_a_folder(self, name, tmp_path):
        assert tmp_path in below(tmp_path, name).parents

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "",
                ".",
                "..",
                "../a",
                "a/../../b",
                "/etc/passwd",
                "\\\\server\\share",
                "C:x",
                "C:\\x",
            ),
            *(
                "a:b",
                "a\0b",
                "a\nb",
                "sub//a",
                "NUL",
                "sub/con.txt",
                "x" * 300,
                "..\\a",
                "a/..",
                "~/\t",
            ),
        ],
    )
    def test_names_that_leave_it(self, name, tmp_path):
        with pytest.raises(ValueError, match="leaves the folder"):
            below(tmp_path, name)

    def test_links_that_stand_there_are_followed(self, tmp_path):
        real = tmp_path / "real"
        (real / "inner").mkdir(parents=True)
        (real / "inner" / "a.png").touch()
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "link").symlink_to(real)
        (real / "loop").symlink_to(tmp_path / "root")
        assert below(tmp_path / "root", "link/inner/a.png").is_file()
        names = [n for _, files in folders_below(tmp_path / "root") for n in files]
        assert names == ["a.png"]

    @pytest.mark.parametrize(
        "name", ["._a.png", ".DS_Store", "a.safetensors.incomplete", "a.PART", "a.crdownload"]
    )
    def test_what_is_hidden_or_not_finished(self, name):
        assert is_hidden(Path(name)) and not is_hidden(Path("a.safetensors"))


class TestWriting:
    @pytest.mark.parametrize(
        "fault", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError()]
    )
    def test_what_was_there_stays_and_nothing_is_left(self, fault, tmp_path):
        (tmp_path / "a").write_text("old")
        with pytest.raises(type(fault)), writing(tmp_path / "a") as partial:
            partial.write_text("half")
            raise fault
        assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1

    @pytest.mark.skipif(os.name == "nt", reason="no such modes")
    @pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
    def test_who_may_read_is_as_for_any_new_file(self, umask, tmp_path):
        before = os.umask(umask)
        try:
            (tmp_path / "plain").touch()
            with writing(tmp_path / "tensors") as partial:
                save_file({"a": torch.zeros(1)}, partial)
            with writing(tmp_path / "private") as partial:
                partial.touch(0o600)
        finally:
            os.umask(before)
        modes = {path.stat().st_mode for path in tmp_path.iterdir()}
        assert len(modes) == 1 and len(list(tmp_path.iterdir())) == 3

    @pytest.mark.skipif(os.name == "nt", reason="no such modes")
    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
    def test_who_may_read_stays_as_it_was(self, mode, tmp_path):
        (tmp_path / "a").touch()
        (tmp_path / "a").chmod(mode)
        with writing(tmp_path / "a") as partial:
            partial.write_text("new")
        assert (tmp_path / "a").stat().st_mode & 0o777 == mode
        assert (tmp_path / "a").read_text() == "new"

    def test_two_writers_of_one_name_do_not_meet(self, tmp_path):
        with writing(tmp_path / "a") as first, writing(tmp_path / "a") as second:
            first.write_text("1")
            second.write_text("2")
        assert (tmp_path / "a").read_text() == "1" and len(list(tmp_path.iterdir())) == 1

    def test_many_new_files_of_one_name_are_one(self, tmp_path):
        done = []
        threads = [
            threading.Thread(target=lambda i=i: done.append(write_new(tmp_path / "a", bytes([i]))))
            for i in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done) == [False] * 15 + [True]
        assert [p.name for p in tmp_path.iterdir()] == ["a"]


class TestLocks:
    HOLD = (
        "import sys, time; from pathlib import Path; from flux_core.files import locked_folder\n"
        "with locked_folder(Path(sys.argv[1]), 'a training runs'):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )

    def test_another_process_waits_and_a_dead_one_gives_it_back(self, tmp_path):
        holder = subprocess.Popen(
            [sys.executable, "-c", self.HOLD, str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[2],
        )
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
            refused = pytest.raises(ConfigError, match="a training runs in this folder already")
            with refused, locked_folder(tmp_path / "run", "a training runs"):
                pass
        finally:
            holder.kill()
            holder.wait()
        with locked_folder(tmp_path / "run", "a training runs"):
            pass


@pytest.mark.parametrize(
    "write", [lambda path: write_new(path, b"x"), lambda path: write_text(path, "x")]
)
def test_a_full_disk_is_told_by_the_name_that_is_written(write, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flux_core.files.sync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write(tmp_path / "a.bin")
    assert caught.value.filename == str(tmp_path / "a.bin") and not list(tmp_path.iterdir())
