"""What became of a run, in numbers and in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .progress import clock, counted, of_all

#: Errors that a summary lists.
MOST_ERRORS = 100


@dataclass
class Summary:
    """What became of a run.

    Attributes:
        rows, broken, duplicates: rows of the table, those that cannot be drawn, and those that ask
            for the same as one before.
        jobs, done, left: what the table asks for, what has its pictures, and what was not tried.
        drawn, failed, adopted: in this run; pictures are adopted that a crash left unnoted.
        earlier: jobs whose pictures are in the folder and that no row asks for.
        errors: the first lines that have no picture, and why.
    """

    out: str
    rows: int = 0
    broken: int = 0
    duplicates: int = 0
    jobs: int = 0
    done: int = 0
    drawn: int = 0
    adopted: int = 0
    failed: int = 0
    left: int = 0
    earlier: int = 0
    seconds: float = 0.0
    results: str = ""
    sheet: str = ""
    errors: list[dict[str, Any]] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def whole(self) -> bool:
        """Whether every row that was tried has its pictures."""
        return not self.failed and not self.broken

    def add_error(self, line: int, error: str) -> None:
        if len(self.errors) < MOST_ERRORS:
            self.errors.append({"line": line, "error": error})

    def __str__(self) -> str:
        """In words, a line for each thing."""
        parts = [f"{self.drawn} drawn in {clock(self.seconds)}"]
        for count, what in (
            (self.adopted, "adopted from a run that was cut off"),
            (self.failed, "failed"),
            (self.left, "left"),
        ):
            parts += [f"{count} {what}"] if count else []
        lines = [f"{of_all(self.done, self.jobs)}: {', '.join(parts)}"]
        if self.broken or self.duplicates:
            lines.append(
                f"of {counted(self.rows, 'row')}, {self.broken} cannot be drawn and "
                f"{self.duplicates} asked for the same as one before"
            )
        if self.earlier:
            lines.append(
                f"the folder also has pictures of {counted(self.earlier, 'job')} of other rows"
            )
        lines += [f"results: {self.results}"] if self.results else []
        return "\n".join([*lines, *([f"sheet: {self.sheet}"] if self.sheet else [])])
