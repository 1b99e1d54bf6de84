"""What prompts say beside their words."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from flux_core import FluxPipeline
from flux_core.models.prompt import (
    Embeddings,
    Piece,
    clip_l_row,
    find_embedding,
    is_plain,
    read_embedding,
    read_prompt,
)
from flux_core.models.tokenizers import Tokenizers
from flux_core.pocket import POCKET


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a red circle", [("a red circle", 1.0)]),
        ("", [("", 1.0)]),
        ("a (red) circle", [("a ", 1.0), ("red", 1.1), (" circle", 1.0)]),
        ("a (red:1.3) circle", [("a ", 1.0), ("red", 1.3), (" circle", 1.0)]),
        ("(red:-0.5)", [("red", -0.5)]),
        ("(red:.5)", [("red", 0.5)]),
        ("((red))", [("red", 1.1 * 1.1)]),
        ("((red:1.5) and blue:2)", [("red", 1.5), (" and blue", 2.0)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(16:9)", [("16", 9.0)]),
        ("(at 16:9 now)", [("at 16:9 now", 1.1)]),
        ("(:1.2)", [(":1.2", 1.1)]),
        ("(a:nan)", [("a:nan", 1.1)]),
        ("(a:)", [("a:", 1.1)]),
        (r"a \(red\) circle", [("a (red) circle", 1.0)]),
        (r"(a \(b:2\):1.2)", [("a (b:2)", 1.2)]),
        ("an (open", [("an ", 1.0), ("(open", 1.0)]),
        ("a closed) one (two:1.2)", [("a closed) one (two:1.2)", 1.0)]),
        ("()", [("", 1.0)]),
        ("(圆:1.2) 红", [("圆", 1.2), (" 红", 1.0)]),
    ],
)
def test_weights(prompt, pieces):
    read = read_prompt(prompt)
    assert [piece.text for piece in read] == [text for text, _ in pieces]
    assert [piece.weight for piece in read] == pytest.approx([weight for _, weight in pieces])


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("embedding:cat", [Piece("cat", 1.0, True)]),
        ("a embedding:cat sits", [Piece("a "), Piece("cat", 1.0, True), Piece("sits")]),
        ("(embedding:cat:1.2)", [Piece("cat", 1.2, True)]),
        ("embedding:cat, on a mat", [Piece("cat", 1.0, True), Piece(", on a mat")]),
        ("embedding: cat", [Piece("cat", 1.0, True)]),
        ("embedding:a embedding:b", [Piece("a", 1.0, True), Piece("b", 1.0, True)]),
        ("embedding:cat.pt", [Piece("cat.pt", 1.0, True)]),
        ("embedding:in/cat[1]", [Piece("in/cat", 1.0, True), Piece("[1]")]),
        ("an embedding:", [Piece("an "), Piece("embedding:")]),
        ("noembedding:cat", [Piece("noembedding:cat")]),
    ],
)
def test_embeddings_by_name(prompt, pieces):
    assert read_prompt(prompt) == pieces


@pytest.mark.parametrize(
    ("prompt", "plain"), [("a cat: two", True), ("(a)", False), (r"\(", False), ("", True)]
)
def test_a_plain_prompt(prompt, plain):
    assert is_plain(prompt) is plain


WIDTH = 6


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("(cat:1e30)", "a weight of 1e\\+30, expected -1000 to 1000"),
        ("(cat:-1001)", "a weight of -1001"),
        ("(((cat:999):999):1e300)", "a weight of 1e\\+300"),
        ("(" * 101 + "x" + ":1)" * 101, "more than 100 brackets in each other"),
        ("(" * 3000 + "x" + ":1)" * 3000, "more than 100 brackets in each other"),
        ("cat " * 5000, "tokens, expected at most 4096"),
        ("(cat) " * 3000, "tokens, expected at most 4096"),
        ("a" * 100_000, "tokens, expected at most 4096"),
    ],
    ids=lambda text: text[:12],
)
def test_what_has_no_bound_is_refused_before_it_is_encoded(prompt, message):
    encoders = FluxPipeline.from_pocket(policy="none").text_encoders
    encoders.t5.forward = encoders.clip_l.forward = None  # type: ignore[assignment, method-assign]
    with pytest.raises(ValueError, match=message):
        encoders.encode([prompt])


@pytest.mark.parametrize("text", ["cut \ud83d", "\udce9 caf", "(\ud83d:1.2)", "\ud83d\ude00 whole"])
def test_halves_of_letters_are_replaced(text):
    encoders = FluxPipeline.from_pocket(policy="none").text_encoders
    encoded = encoders.encode([text])
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert torch.equal(encoded.context, encoders.encode([whole]).context)


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000, "\ud83d", "../../etc/passwd", "C:x", "nul"])
def test_a_name_that_no_file_has_is_no_embedding(name, tmp_path):
    with pytest.raises(FileNotFoundError, match="no embedding") as raised:
        find_embedding(name, [tmp_path])
    assert len(str(raised.value)) < 300


class TestFiles:
    @pytest.mark.parametrize("shape", [(3, WIDTH), (WIDTH,)])
    @pytest.mark.parametrize("kind", ["keys", "one", "old", "listed", "bundled"])
    def test_every_kind_is_read(self, kind, shape, tmp_path):
        vectors = torch.randn(shape)
        content = {
            "keys": {"clip_g": torch.randn(2, 9), "clip_l": vectors},
            "one": {"emb_params": vectors},
            "old": {"string_to_param": {"*": vectors}, "step": 3, "name": "x"},
            "listed": [{"<x>": vectors}],
            "bundled": {"bundle_emb.x.clip_l": vectors},
        }[kind]
        path = tmp_path / "x.pt"
        torch.save(content, path)
        read = Embeddings([tmp_path], "clip_l", WIDTH, [WIDTH, 8]).vectors("x")
        assert torch.equal(read, vectors.reshape(-1, WIDTH))

    def test_vectors_of_another_width_are_left_out_with_a_word(self, tmp_path, caplog):
        save_file({"clip_l": torch.randn(2, WIDTH)}, tmp_path / "x.safetensors")
        assert Embeddings([tmp_path], "t5xxl", 8, [WIDTH, 8]).vectors("x").shape == (0, 8)
        assert "no vectors for t5xxl" in caplog.text

    @pytest.mark.parametrize("name", ["y", "../x", "", "sub"])
    def test_a_name_that_is_no_file_is_an_error(self, name, tmp_path):
        folder = tmp_path / "embeddings"
        (folder / "sub").mkdir(parents=True)
        save_file({"clip_l": torch.randn(2, WIDTH)}, tmp_path / "x.safetensors")
        with pytest.raises(FileNotFoundError, match="no embedding"):
            find_embedding(name, [folder])

    @pytest.mark.parametrize(
        ("content", "name"), [(b"no tensors", "x.pt"), (None, "x.pt"), (b"no", "x.safetensors")]
    )
    def test_a_file_that_is_none_is_an_error(self, content, name, tmp_path):
        path = tmp_path / name
        if content is None:
            torch.save({"a": 1}, path)
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=name):
            read_embedding(path)


class TestClipRow:
    """CLIP-L's first tokens, with pieces that have no room any more."""

    def row(self, *texts: str):
        folder = POCKET / "text_encoders"
        tokenizer = Tokenizers.load(folder / "tokenizer", folder / "tokenizer_2").clip_l
        none = Embeddings([], "clip_l", 1, [1])
        return clip_l_row(tokenizer, [Piece(text) for text in texts], none, 77), tokenizer

    def test_a_long_piece_is_cut_where_it_ends(self):
        row, tokenizer = self.row("red " * 100)
        assert len(row.ids) == 77 and row.ids[-1] == tokenizer.eos_token_id
        assert row.ids[1] == row.ids[75]

    def test_a_short_piece_goes_whole_to_the_next(self):
        row, tokenizer = self.row("red " * 74, "green blue")
        assert row.ids[75] == row.ids[76] == tokenizer.eos_token_id
        assert len(row.ids) == len(row.weights) == 77
