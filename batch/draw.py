"""Drawing one job: the graph with the row's values, run, and its pictures as PNG files.

Whoever draws does it by a ``Drawer``, in whatever process and on whatever machine, so that a job's
pictures do not depend on who that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from flux_core.receipts import png_bytes

from ..nodes.headless import GraphRunner, from_api
from .jobs import Job, with_values


@dataclass(frozen=True)
class Drawn:
    """One picture of a job.

    Attributes:
        name: of the file, without the folder; ``picture_path`` says where it lies.
        content: the whole PNG; None where whoever drew it has written the file already.
        pixels: the SHA-256 of its RGB rows.
    """

    name: str
    content: bytes | None
    pixels: str


class Drawer:
    """Draws jobs of one graph one after another, and keeps what the next one needs too.

    Args:
        graph: the workflow as an API prompt.
        private: leave prompts and paths out of the receipts.
    """

    def __init__(self, graph: Mapping[str, Any], *, private: bool = False) -> None:
        self.graph = from_api(graph)
        self.private = private
        self.runner = GraphRunner(private)

    def draw(self, job: Job) -> list[Drawn]:
        """The pictures of a job; raises what its nodes raise."""
        pictures = self.runner.images(with_values(self.graph, job.values))
        about: dict[str, Any] = {"id": job.id}
        about |= {} if self.private else {"values": job.values}
        drawn = []
        for picture in pictures:
            picture = replace(picture, receipt=replace(picture.receipt, job=about))
            name = picture_name(job.id, picture.node, picture.index, len(pictures))
            content = png_bytes(picture.pixels, picture.texts)
            drawn.append(Drawn(name, content, picture.receipt.pixels))
        return drawn


def picture_name(job_id: str, node: str, index: int, count: int) -> str:
    """What the file of a job's picture is called; ``count`` is of all its pictures. A workflow may
    call a node by any text: what leaves a folder is no part of the name."""
    if count == 1:
        return f"{job_id}.png"
    return f"{job_id}_{quote(node.replace(':', '-'), safe='')}_{index}.png"


def picture_path(name: str) -> str:
    """Where a picture lies below the batch's folder."""
    return f"pictures/{name[:2]}/{name}"
