"""Draw pictures again from what they say of themselves."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .exit_codes import FAILED, exit_code, is_out_of_memory
from .files import check_folder, named_path, refuse_missing
from .outcome import Outcome

if TYPE_CHECKING:
    from flux_core.receipts import Receipt

    from ..nodes.headless import GraphRunner
    from ..nodes.headless.replay import PictureFile, Replayed

HELP = "draw a picture again from what it says of itself, and compare"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("picture", type=Path, nargs="+", help="PNG, or WebP of ComfyUI")
    parser.add_argument("--out", type=named_path, help="a folder for what was drawn again")


def run(args: argparse.Namespace) -> Outcome:
    """Status 1 where a picture has other bits than it had, and that of the first error where one
    cannot be drawn again; the others are drawn nevertheless."""
    if args.out is not None:
        check_folder(args.out, "--out")
    if len(args.picture) == 1:
        refuse_missing(args.picture[0])
    from ..nodes.headless import GraphRunner

    runner = GraphRunner()
    lines: list[str] = []
    results: list[dict[str, Any]] = []
    status = 0
    for path in args.picture:
        try:
            replayed = replay_file(path, runner)
        except (ValueError, OSError, RuntimeError, MemoryError) as error:
            if len(args.picture) == 1:
                raise
            lines.append(str(error) if str(path) in str(error) else f"{path}: {error}")
            results.append({"picture": path, "error": str(error)})
            status = status or exit_code(error)
            continue
        lines += indented(replayed.lines)
        results.append(data_of(replayed))
        status = status or (0 if replayed.difference.same else FAILED)
        if args.out is not None:
            written = write(replayed, args.out)
            lines.append(f"  picture: {written}")
            results[-1]["written"] = written
    return Outcome("\n".join(lines), {"pictures": results}, status)


def replay_file(path: Path, runner: GraphRunner) -> Replayed:
    """Draw one picture again, by its command or its graph."""
    from ..nodes.headless.replay import PictureFile, replay

    picture = PictureFile.open(path)
    if picture.receipt is not None and picture.receipt.command:
        return by_command(picture, picture.receipt)
    return replay(picture, runner)


def by_command(picture: PictureFile, receipt: Receipt) -> Replayed:
    """Draw a picture of ``generate`` again; raises ``ValueError`` for another command's, and for
    one whose request is damaged."""
    from flux_core.files import reason
    from flux_core.receipts import pixels_hash

    from ..nodes.headless.replay import compared
    from .generate import draw

    request, index = receipt.command.get("request"), receipt.picture.get("index", 0)
    if receipt.command.get("name") != "generate":
        name = receipt.command.get("name")
        raise ValueError(f"{picture.path}: made by command {name!r}, expected generate")
    if not isinstance(request, dict) or not request:
        raise ValueError(f"{picture.path}: its request is damaged (it is {request!r})")
    remarks: list[str] = []
    try:
        images = draw(with_present_files(request, receipt, remarks))
    except (KeyError, TypeError, AttributeError, RuntimeError) as fault:  # a text may say anything
        if is_out_of_memory(fault):
            raise
        raise ValueError(f"{picture.path}: its request is damaged ({reason(fault)})") from fault
    except (ValueError, FileNotFoundError) as fault:
        kind = FileNotFoundError if isinstance(fault, FileNotFoundError) else ValueError
        raise kind(f"{picture.path}: {fault}") from fault
    if not isinstance(index, int) or not 0 <= index < len(images):
        raise ValueError(
            f"{picture.path}: picture {index!r} of its command, which draws {len(images)}"
        )
    pixels = images.pixels[index]
    now = images.receipt.of_picture(pixels_hash(pixels), "", index, len(images))
    return compared(picture, pixels, now, remarks)


def with_present_files(value: Any, receipt: Receipt, remarks: list[str]) -> Any:
    """A request whose files lie where it says, or under other names in the same folders; what is
    taken in the place of another goes into ``remarks``."""
    if isinstance(value, dict):
        return {key: with_present_files(item, receipt, remarks) for key, item in value.items()}
    if isinstance(value, list):
        return [with_present_files(item, receipt, remarks) for item in value]
    known = receipt.files.get(Path(value).name, {}) if isinstance(value, str) else {}
    if not known.get("sha256"):
        return value
    from ..nodes.headless.replay import has_content

    path = Path(value)
    others = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    for other in (path, *others):
        if other.is_file() and has_content(other, known["sha256"], known.get("bytes", 0)):
            if other != path:
                remarks.append(f"{other.name} was taken for {path.name}, which has its content")
            return str(other)
    return value


def indented(lines: list[str]) -> list[str]:
    return [line if number == 0 else f"  {line}" for number, line in enumerate(lines)]


def data_of(replayed: Replayed) -> dict[str, Any]:
    """What is known of a picture that was drawn again, as data."""
    difference = replayed.difference
    return {
        "picture": replayed.original.path,
        "same": difference.same,
        "largest": difference.largest,
        "share": difference.share,
        "psnr": None if difference.same else difference.psnr,
        "remarks": replayed.lines[1:],
    }


def write(replayed: Replayed, folder: Path) -> Path:
    """Save what was drawn again, with a receipt of its own."""
    from flux_core.receipts import KEY

    from ..nodes.headless.stock_nodes import save_png

    texts = dict(replayed.original.texts) | {KEY: str(replayed.receipt)}
    return save_png(replayed.pixels, folder.resolve() / replayed.original.path.stem, texts)
