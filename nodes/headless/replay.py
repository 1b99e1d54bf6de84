"""Drawing a picture again from what it says of itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flux_core.errors import FileError
from flux_core.files import files_of_model, reading
from flux_core.receipts import KEY, Receipt, content_hash, pixels_hash, read_png_texts
from flux_core.receipts.compare import PixelDifference, what_differs
from flux_core.units import readable_bytes

from .. import host
from .graph import Graph, WorkflowError
from .graph_check import ordered_from
from .run_graph import GraphRunner, OnNode, SavedPicture, saving_nodes
from .signature import FileValue, file_values
from .workflow_file import GRAPHS, graph_in_texts, parse

log = logging.getLogger("fluxfit")


@dataclass(frozen=True)
class PictureFile:
    """A picture's pixels, uint8 (H, W, 3), its texts, and its receipt where it has one."""

    path: Path
    pixels: np.ndarray
    texts: dict[str, str]
    receipt: Receipt | None

    @classmethod
    def open(cls, path: str | Path) -> PictureFile:
        """Raises ``FileError`` naming the file where it is no picture, or its receipt is broken."""
        path = Path(path)
        pixels, texts = read_png_texts(path)
        if KEY not in texts:
            return cls(path, pixels, texts, None)
        with reading(path, "a picture with a receipt", FileError):
            return cls(path, pixels, texts, Receipt.parse(texts[KEY]))

    @property
    def graph(self) -> Graph:
        """The graph that drew it; raises ``WorkflowError`` where it has none."""
        with reading(self.path, "a picture with a workflow", WorkflowError):
            data = graph_in_texts(self.texts, first="prompt")
            if data is not None:
                return parse(data)
        why = "no graph is in it"
        if self.receipt is not None:
            why = "it was saved with --private, or by a Python program, which has no graph"
        raise WorkflowError(f"{self.path}: does not say what was asked for: {why}")

    @property
    def has_graph(self) -> bool:
        """Whether it says what was asked for."""
        return any(key in self.texts for key in GRAPHS)

    @property
    def changed(self) -> bool:
        """Whether its pixels are not those that its receipt speaks of."""
        known = [] if self.receipt is None else known_pixels(self.receipt)
        return bool(known) and pixels_hash(self.pixels) not in known


@dataclass(frozen=True)
class Replayed:
    """A picture that was drawn again, and how it compares."""

    original: PictureFile
    pixels: np.ndarray
    receipt: Receipt
    difference: PixelDifference
    remarks: Sequence[str] = ()

    @property
    def lines(self) -> list[str]:
        """What is to be said of it."""
        lines = [f"{self.original.path}: {self.difference}", *self.remarks]
        if self.original.changed:
            lines.append("the file's pixels were changed after it was saved")
        if self.original.receipt is None:
            lines.append("it has no receipt: it was drawn from its graph alone")
        else:
            lines += what_differs(self.original.receipt, self.receipt)
        return lines


def known_pixels(receipt: Receipt) -> list[str]:
    """Hashes of the pictures that a receipt speaks of: the one, or in the host all decoded ones."""
    if receipt.pixels:
        return [receipt.pixels]
    return [pixels for entry in receipt.did for pixels in entry.get("pixels", ())]


def replay(picture: PictureFile, runner: GraphRunner, on_node: OnNode | None = None) -> Replayed:
    """Draw a picture again from the graph inside of it.

    Models are looked for by their names, and where none of a name has the content that the receipt
    speaks of, by content. Raises ``FileNotFoundError`` naming node and file for one that is
    missing, ``WorkflowError`` for a picture without a graph.
    """
    graph = picture.graph
    receipt = picture.receipt or Receipt()
    node = str(receipt.picture.get("node", ""))
    savers = [node] if node in graph else saving_nodes(graph)
    remarks = list(name_present_files(graph, savers, receipt))
    drawn = runner.images(graph, on_node, savers)
    chosen = choose(drawn, picture, receipt)
    return compared(picture, chosen.pixels, chosen.receipt, remarks)


def compared(
    picture: PictureFile, pixels: np.ndarray, receipt: Receipt, remarks: Sequence[str] = ()
) -> Replayed:
    """A picture beside what was drawn again, uint8 (H, W, 3); raises ``WorkflowError`` for other
    sizes."""
    if pixels.shape != picture.pixels.shape:
        (height, width), (rows, columns) = picture.pixels.shape[:2], pixels.shape[:2]
        raise WorkflowError(
            f"{picture.path}: has {width}x{height} pixels, and is drawn with {columns}x{rows}: it "
            "was cut or scaled after it was saved"
        )
    difference = PixelDifference.of(pixels, picture.pixels)
    return Replayed(picture, pixels, receipt, difference, remarks)


def choose(drawn: Sequence[SavedPicture], picture: PictureFile, receipt: Receipt) -> SavedPicture:
    """The one of several pictures that should be this one; where nothing says which, the nearest.

    Raises ``WorkflowError`` where none has its size.
    """
    index = receipt.picture.get("index")
    if isinstance(index, int) and 0 <= index < len(drawn):
        drawn = [drawn[index]]
    alike = [one for one in drawn if one.pixels.shape == picture.pixels.shape]
    if not alike:
        sizes = ", ".join(f"{one.pixels.shape[1]}x{one.pixels.shape[0]}" for one in drawn)
        height, width = picture.pixels.shape[:2]
        raise WorkflowError(
            f"{picture.path}: has {width}x{height} pixels, and its graph draws {sizes or 'none'}: "
            "it was cut or scaled after it was saved"
        )
    return min(alike, key=lambda one: -PixelDifference.of(one.pixels, picture.pixels).psnr)


def name_present_files(graph: Graph, savers: Sequence[str], receipt: Receipt) -> Iterator[str]:
    """Have the graph name the files that a receipt speaks of, as they lie here; says what is
    otherwise."""
    for file in file_values(graph, ordered_from(graph, savers)):
        known: Any = receipt.files.get(Path(file.value.replace("\\", "/")).name, {})
        digest, size = known.get("sha256"), known.get("bytes")
        try:
            path = file.path
        except FileError as error:
            other = None if digest is None else same_content(file, digest, size)
            if other is None:
                about = f" (sha256 {digest}, {readable_bytes(size)})" if digest else ""
                raise FileNotFoundError(f"{error}{about}") from error
        else:
            if digest is None or content_hash(path) == digest:
                continue
            other = same_content(file, digest, size)
            if other is None:
                continue  # the receipts say that it is otherwise
        yield f"{other} was taken for {file.value}, which has its content"
        file.step.inputs[file.name] = other


def same_content(file: FileValue, digest: str, size: int) -> str | None:
    """The name of a model of some content, in the folders where the input looks."""
    names = host.model_names(*file.folders)
    paths = {name: host.model_path(name, *file.folders) for name in names}
    return next((name for name in paths if has_content(paths[name], digest, size)), None)


def has_content(path: Path, digest: str, size: int) -> bool:
    """Whether a model has some content, which is told by its size before it is read."""
    total = sum(part.stat().st_size for part in files_of_model(path) if part.exists())
    return total == size and content_hash(path) == digest
