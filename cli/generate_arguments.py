"""The arguments of ``generate``. What is not said is None: a family's defaults come later."""

from __future__ import annotations

import argparse
from pathlib import Path

from .files import check_folder, named_path, refuse_picture_name

CONTROL = "NET=PICTURE[=STRENGTH[@START..END]]"
HERE = "; a file, or the name of one in the folder of --models"


# long: a list of arguments, each with its line
def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="+", help="a sentence; of several each is a picture")
    parser.add_argument(
        "--out",
        type=named_path,
        default=Path("output"),
        help="a folder, or NAME.png (output by default)",
    )
    parser.add_argument("--overwrite", action="store_true", help="whether NAME.png may be there")
    parser.add_argument(
        "--private", action="store_true", help="keep prompts and paths out of the pictures"
    )
    add_model(parser.add_argument_group("the model, by default the pocket model"))
    add_memory(parser.add_argument_group("memory"))
    add_drawing(parser.add_argument_group("how it is drawn"))
    add_start(parser.add_argument_group("from a picture"))
    add_seen(parser.add_argument_group("pictures to look at"))
    add_parts(parser.add_argument_group("places and sizes"))


def add_model(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--transformer", metavar="FILE", help=f"a checkpoint, repository or transformer{HERE}"
    )
    group.add_argument("--clip-l", metavar="FILE", help="where the checkpoint does not hold it")
    group.add_argument("--t5", metavar="FILE", help="the same")
    group.add_argument("--text-encoder", metavar="FILE", help="FLUX.2's language model")
    group.add_argument("--vae", metavar="FILE", help="the same")
    group.add_argument("--tokenizers", metavar="FOLDER", help="beside the weights by default")
    group.add_argument("--precision", help="of weights: bf16 (default), fp8_scaled, int8, ...")
    group.add_argument("--text-precision", metavar="PRECISION", help="of the text encoders")
    group.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="FILE[=STRENGTH[@SCHEDULE]]",
        help="a schedule such as 0:1,0.5:0 says how the strength goes over the steps",
    )


def add_memory(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--offload", metavar="POLICY", help="auto, none, component or stream")
    group.add_argument("--vram", type=float, metavar="GB", help="of the card, for auto and stream")
    group.add_argument("--ram", type=float, metavar="GB", help="of the host, for weights")
    group.add_argument("--device", help="cuda, cuda:1, cpu, ...")
    group.add_argument("--devices", help="those that draw together: cuda:0,cuda:1 or all")


def add_drawing(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--width", type=int, help="1024, or 256 for the pocket model")
    group.add_argument("--height", type=int, help="the same")
    group.add_argument("--steps", type=int, help="as the model is published, or 30")
    group.add_argument("--seed", default="0", help="one or more: 1,2,5..8 (0 by default)")
    group.add_argument("--count", type=int, help="so many pictures, by the seeds after --seed")
    group.add_argument("--batch-size", type=int, default=1, help="how many are drawn at once")
    group.add_argument("--guidance", type=float, help="the distilled one, 3.5 by default")
    group.add_argument("--negative", help="what is not to be seen")
    group.add_argument("--cfg", type=float, help="true guidance; 1 leaves --negative out")
    group.add_argument("--cfg-start", type=float, help="share of the schedule where it begins")
    group.add_argument("--cfg-end", type=float, help="share of the schedule where it ends")
    group.add_argument("--cfg-zero", help="CFG-Zero*: velocity or picture")
    group.add_argument("--cfg-rescale", type=float, help="0 to 1")
    group.add_argument(
        "--nag-scale", type=float, help="normalized attention guidance away from --negative, 5 say"
    )
    group.add_argument("--sampler", help="euler by default")
    group.add_argument("--scheduler", help="simple by default")
    group.add_argument("--shift", help="of the schedule: host, resolution or diffsynth")


def add_start(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--image", metavar="PICTURE", help="to start from, with --denoise below 1")
    group.add_argument("--denoise", type=float, help="how much is drawn anew, 0 to 1")
    group.add_argument("--mask", metavar="PICTURE", help="white where to draw, black where to keep")
    group.add_argument("--keep-pixels", type=int, metavar="FADE", help="outside of the mask")
    group.add_argument("--differential", type=float, help="a grey mask is read by steps, 0 to 1")


def add_seen(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="PICTURE",
        help="what Kontext and FLUX.2 look at",
    )
    group.add_argument("--reference-size", help="preferred, own or drawn")
    group.add_argument("--reference-method", help="how they are placed")
    group.add_argument("--reference-attention", help="joint or self")
    group.add_argument("--condition", metavar="PICTURE", help="what Fill, Canny, Depth models read")
    group.add_argument("--condition-mask", metavar="PICTURE", help="white where Fill paints")
    group.add_argument("--control-picture", metavar="PICTURE", help="edges or depth for Flex.2")
    group.add_argument("--control-strength", type=float, help="of it")
    group.add_argument("--control-end", type=float, help="the share of the schedule that it has")
    group.add_argument(
        "--control",
        action="append",
        default=[],
        metavar=CONTROL,
        help="a ControlNet with its picture; NET:MODE (canny, tile, depth, blur, pose, gray) for "
        "union models, whose --mask inpainting ones take",
    )
    group.add_argument(
        "--redux", action="append", default=[], metavar="MODEL=PICTURE[=STRENGTH]", help="a style"
    )
    group.add_argument(
        "--ip-adapter", action="append", default=[], metavar="MODEL=PICTURE[=WEIGHT[@START..END]]"
    )
    group.add_argument("--vision", metavar="FILE", help="the encoder of --redux and --ip-adapter")


def add_parts(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--region",
        action="append",
        default=[],
        metavar='"X,Y,W,H: WORDS"',
        help="a prompt for a box: left, top, width and height in shares of the picture; the words "
        "say the place and the background too",
    )
    group.add_argument(
        "--tile", type=int, help="pixels of windows that a larger picture has; 256 with --hires"
    )
    group.add_argument("--hires", type=float, metavar="SCALE", help="draw again, larger by this")
    group.add_argument("--hires-denoise", type=float, help="how much is drawn again, 0.3")
    group.add_argument("--hires-steps", type=int, help="of the second run; as the first by default")


def output_of(args: argparse.Namespace) -> Path:
    """Where pictures go; raises ``ValueError`` for a file that is no PNG, or is there already, and
    for a folder that cannot be written."""
    out: Path = args.out
    is_png = out.suffix.lower() == ".png" and not out.is_dir()
    if out.exists() and not out.is_dir() and not is_png:
        raise ValueError(f"--out {out} is a file, expected a folder or NAME.png")
    if is_png and out.exists() and not args.overwrite:
        raise ValueError(f"--out {out} exists already: choose another name or --overwrite")
    if args.overwrite and not is_png:
        raise ValueError(f"--overwrite is for --out NAME.png, and --out is {out}")
    refuse_picture_name(out, "--out")
    check_folder(out.parent if is_png else out, "--out")
    return out
