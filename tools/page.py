"""A page of ``workflows/``: steps, and a note whose parts stand in the same order on each."""

from __future__ import annotations

from dataclasses import dataclass

#: A step has columns, a column has names of nodes from top to bottom.
Steps = dict[str, list[list[str]]]


@dataclass(frozen=True)
class Page:
    """The steps of a graph from left to right, and a note in Markdown."""

    note: str
    steps: Steps


POCKET = """\
**Files:** none to get, FluxFit brings the pocket model, a FLUX.1 in
miniature. For FLUX.1-dev put
its transformer into `models/diffusion_models`, CLIP-L and T5 into `models/text_encoders`, the VAE
into `models/vae`, and choose them in the loader."""


def note(title: str, shows: str, files: str, first: str) -> str:
    """What a graph shows, where its files go, what to turn first."""
    parts = (f"## {title}", joined(shows), joined(files), f"**Turn first:** {joined(first)}")
    return "\n\n".join(parts) + "\n"


def joined(text: str) -> str:
    """Paragraphs without the breaks of this file; lines of lists stay."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(p if p.startswith("- ") else " ".join(p.split()) for p in paragraphs)


LOAD = [["policy"], ["loader"]]
