"""What a prompt says beside its words: weights, and embeddings by name.

The notation is ComfyUI's. ``(words:1.2)`` gives words a weight, ``(words)`` one of 1.1, groups may
stand in groups, ``\\\\(`` is a bracket. ``embedding:name`` stands for the vectors of a file.

Axis letters: N tokens, D width.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..bounds import brief, refuse_not_finite
from ..errors import CheckpointError
from ..files import below, reading

log = logging.getLogger(__name__)

#: What brackets without a number multiply a weight by.
STRONGER = 1.1
EMBEDDING = "embedding:"
SUFFIXES = (".safetensors", ".pt", ".bin")
#: Brackets that are meant, while those that group are read.
MEANT = {"\\(": "\ue000", "\\)": "\ue001"}
#: Shorter runs of tokens go whole into the next 77 where CLIP-L has no room for them, as the host
#: has it: the pooled vector is that of the first 77.
WHOLE = 8
#: Weights of words, and groups in each other: beyond these a picture is NaN, or takes for ever.
MOST_WEIGHT, DEEPEST = 1000.0, 100
#: Tokens of a prompt, whose attention takes their square: 4 GB of T5's.
MOST_TOKENS = 4096
#: The number in the place of a vector, which no tokenizer has for its end: CLIP-L looks for that.
STAND_IN = 0


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt: text, or the name of an embedding, with its weight."""

    text: str
    weight: float = 1.0
    embedding: bool = False


def read_prompt(prompt: str) -> list[Piece]:
    """The pieces of a prompt in order; one that says nothing special is one piece.

    Raises ``ValueError`` as ``weighted_texts`` does.
    """
    for escaped, kept in MEANT.items():
        prompt = prompt.replace(escaped, kept)
    pieces: list[Piece] = []
    for text, weight in weighted_texts(prompt, 1.0):
        for escaped, kept in MEANT.items():
            text = text.replace(kept, escaped[1:])
        pieces += [Piece(part, weight, named) for part, named in embeddings_in(text)]
    return pieces or [Piece("")]


def is_plain(prompt: str) -> bool:
    """Whether a prompt is what it is, letter by letter."""
    return read_prompt(prompt) == [Piece(prompt)]


def weighted_texts(text: str, weight: float, depth: int = 0) -> Iterator[tuple[str, float]]:
    """Texts without brackets, with the weight of the brackets around each.

    Raises ``ValueError`` for weights out of range, and for brackets in each other without end.
    """
    if depth > DEEPEST:
        raise ValueError(f"a prompt has more than {DEEPEST} brackets in each other")
    if abs(weight) > MOST_WEIGHT:
        raise ValueError(
            f"a prompt's brackets give words a weight of {weight:g}, expected -{MOST_WEIGHT:g} to "
            f"{MOST_WEIGHT:g}"
        )
    for part in groups(text):
        if len(part) < 2 or not (part.startswith("(") and part.endswith(")")):
            yield part, weight
            continue
        inner, own = part[1:-1], weight * STRONGER
        words, colon, number = inner.rpartition(":")
        if colon and words and is_number(number):  # or a colon of the text
            inner, own = words, float(number)
        yield from weighted_texts(inner, own, depth + 1)


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def groups(text: str) -> Iterator[str]:
    """Outermost groups with their brackets, and what stands between them."""
    depth = start = 0
    for i, letter in enumerate(text):
        if letter == "(":
            if depth == 0 and i > start:
                yield text[start:i]
                start = i
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                yield text[start : i + 1]
                start = i + 1
    if start < len(text):
        yield text[start:]


def embeddings_in(text: str) -> Iterator[tuple[str, bool]]:
    """Parts of a text, and whether each is the name of an embedding."""
    for part in re.split(rf"(?:^|(?<=\s))(?={EMBEDDING})", text):
        words = part.removeprefix(EMBEDDING).split()
        if not part.startswith(EMBEDDING) or not words:
            if part:
                yield part, False
            continue
        match = re.match(r"[^<\[]*?(?=,*(?:[<\[]|$))", words[0])  # what follows is text again
        name = match.group() if match else words[0]
        yield name, True
        rest = " ".join([words[0][len(name) :], *words[1:]]).strip()
        if rest:
            yield rest, False


@dataclass
class TokenRow:
    """Token numbers of one prompt, a weight for each, and vectors (D,) in the place of some."""

    ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    vectors: dict[int, Tensor] = field(default_factory=dict)

    def add(self, ids: Sequence[int], weight: float = 1.0) -> None:
        self.ids += ids
        self.weights += [weight] * len(ids)

    def add_row(self, other: TokenRow, count: int | None = None) -> None:
        """Another row behind this one, or its first tokens."""
        start, stop = len(self.ids), len(other.ids) if count is None else count
        self.vectors |= {start + i: v for i, v in other.vectors.items() if i < stop}
        self.ids += other.ids[:stop]
        self.weights += other.weights[:stop]

    @property
    def weighted(self) -> bool:
        return any(weight != 1.0 for weight in self.weights)


def piece_row(tokenizer: PreTrainedTokenizerBase, piece: Piece, embeddings: Embeddings) -> TokenRow:
    """The tokens of one piece, without marks."""
    row = TokenRow()
    if piece.embedding:
        row.vectors = dict(enumerate(embeddings.vectors(piece.text)))
        row.add([STAND_IN] * len(row.vectors), piece.weight)
    else:
        row.add(word_ids(tokenizer, piece.text), piece.weight)
    return row


def t5_row(
    tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece], embeddings: Embeddings
) -> TokenRow:
    """All tokens of a prompt and the end; nothing is cut and nothing padded.

    Raises ``ValueError`` for too many.
    """
    row = TokenRow()
    for piece in pieces:
        row.add_row(piece_row(tokenizer, piece, embeddings))
        refuse_long(len(row.ids))
    row.add([int(tokenizer.eos_token_id)])  # type: ignore[arg-type]
    return row


def clip_l_row(
    tokenizer: PreTrainedTokenizerBase,
    pieces: Sequence[Piece],
    embeddings: Embeddings,
    length: int,
) -> TokenRow:
    """The first ``length`` tokens of a prompt between start and end, padded."""
    row = TokenRow()
    row.add([int(tokenizer.bos_token_id)])  # type: ignore[arg-type]
    for piece in pieces:
        group = piece_row(tokenizer, piece, embeddings)
        count, room = len(group.ids), length - 1 - len(row.ids)
        if count <= room:
            row.add_row(group)
            continue
        row.add_row(group, room if count >= WHOLE else 0)
        log.warning("CLIP-L reads the first %d tokens of this prompt", len(row.ids) + 1)
        break
    row.add([int(tokenizer.eos_token_id)])  # type: ignore[arg-type]
    row.add([pad_of(tokenizer)] * (length - len(row.ids)))
    return row


def word_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token numbers of a text, without marks; raises ``ValueError`` for too many."""
    ids = list(tokenizer(whole_letters(text), add_special_tokens=False, verbose=False).input_ids)
    refuse_long(len(ids))
    return ids


def refuse_long(count: int) -> None:
    """Raise ``ValueError`` for more tokens than a prompt may have."""
    if count > MOST_TOKENS:
        raise ValueError(f"a prompt has {count} tokens, expected at most {MOST_TOKENS}")


def whole_letters(text: str) -> str:
    """A text without halves of letters, as one has that was cut inside of an emoji."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def pad_of(tokenizer: PreTrainedTokenizerBase) -> int:
    return int(tokenizer.pad_token_id)  # type: ignore[arg-type]


class Embeddings:
    """Files of embeddings in some folders, as one encoder reads them.

    Args:
        key: of the encoder's vectors in a file that has them for several: ``clip_l``, ``t5xxl``.
        width: of the encoder's vectors.
        widths: of both encoders'.
    """

    def __init__(
        self, folders: Sequence[Path], key: str, width: int, widths: Collection[int]
    ) -> None:
        self.folders, self.key, self.width, self.widths = folders, key, width, set(widths)

    def vectors(self, name: str) -> Tensor:
        """Vectors (n, D), of which there are none where a file has them for the other encoder.

        Raises ``FileNotFoundError`` for a name that no folder has, ``ValueError`` for a file with
        vectors for neither.
        """
        path = find_embedding(name, self.folders)
        tensors = read_embedding(path)
        theirs = {tensor.shape[-1] for tensor in tensors.values()}
        if not theirs & self.widths:
            raise ValueError(
                f"{path}: has vectors of {sorted(theirs)} numbers, the text encoders read "
                f"{sorted(self.widths)}"
            )
        named = [t for k, t in tensors.items() if k == self.key or k.endswith(f".{self.key}")]
        for tensor in named or tensors.values():
            if tensor.shape[-1] == self.width:
                return tensor.reshape(-1, self.width).float()
        log.warning("%s: has no vectors for %s and is left out there", path.name, self.key)
        return torch.empty(0, self.width)


def find_embedding(name: str, folders: Sequence[Path]) -> Path:
    """The file of an embedding, with or without its suffix."""
    for folder in folders:
        for suffix in ("", *SUFFIXES):
            try:
                path = below(folder, name + suffix).resolve()
            except ValueError:  # a name that no file has
                continue
            if path.is_file() and path.is_relative_to(folder.resolve()):
                return path
    looked = " or ".join(map(str, folders)) or "no folder of embeddings is known"
    raise FileNotFoundError(f"no embedding {brief(name)}: {looked}")


def embedding_files(prompts: Sequence[str], folders: Sequence[Path]) -> tuple[object, ...]:
    """The files that prompts name, and what tells that they are as they were."""
    paths = [
        find_embedding(piece.text, folders)
        for prompt in prompts
        for piece in read_prompt(prompt)
        if piece.embedding
    ]
    stats = [(path, path.stat()) for path in paths]
    return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats)


def read_embedding(path: Path) -> dict[str, Tensor]:
    """The tensors of an embedding's file by name.

    Raises ``CheckpointError`` for a file that is none.
    """
    with reading(path, "an embedding that can be opened safely"):
        if path.suffix == ".safetensors":
            content: object = load_file(path)
        else:
            content = torch.load(path, weights_only=True, map_location="cpu")
    tensors = dict(vectors_in(content))
    if not tensors:
        raise CheckpointError(f"{path}: has no vectors")
    for name, tensor in tensors.items():
        refuse_not_finite(path, name, tensor)
    return tensors


def vectors_in(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Vectors, (width,) or (rows, width), in a file of any nesting, as trainers of several years
    wrote them."""
    if isinstance(content, Tensor):
        if content.is_floating_point() and content.ndim in (1, 2):
            yield name, content
    elif isinstance(content, dict):
        inner = content.get("string_to_param", content)
        for key, value in inner.items() if isinstance(inner, dict) else ():
            yield from vectors_in(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from vectors_in(value, f"{name}.{i}" if name else str(i))
