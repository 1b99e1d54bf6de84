"""Draws assets/icon.png and assets/banner.png, which ComfyUI's registry shows.

    python -m tools.brand

The pictures on the banner are drawn by the pocket model.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from flux_core import FluxPipeline
from flux_core.pocket import POCKET_SAMPLING
from flux_core.report.pictures import to_pil

ASSETS = Path(__file__).resolve().parents[1] / "assets"
ICON, BANNER = (400, 400), (1344, 576)
#: Drawn so many times larger and made smaller, for smooth edges.
FINER = 4
NIGHT, SNOW, MIST = (20, 23, 34), (245, 247, 252), (158, 168, 190)
#: From the top left to the bottom right of the mark.
WARM, COLD = (255, 138, 76), (86, 92, 255)
#: An F of blocks, column and row, and the blocks that stream in to it, ever fainter.
BLOCKS = [(0, row) for row in range(5)] + [(1, 0), (2, 0), (1, 2)]
STREAMED = {(2, 2): 0.75, (3, 2): 0.35}
PROMPTS = (
    "a large red heart in the middle on a white background",
    "a large yellow star in the middle on a blue background",
    "a large green square in the middle on a black background",
    "a large blue ring in the middle on a yellow background",
    "a large white triangle in the middle on a red background",
    "a large purple cross in the middle on a white background",
)


def mixed(a: tuple[int, ...], b: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))


def draw_mark(image: Image.Image, left: float, top: float, height: float) -> None:
    """The F of blocks, five of them and their gaps high, in pixels."""
    draw = ImageDraw.Draw(image)
    step = height / 4.88
    side = 0.88 * step
    opacities = dict.fromkeys(BLOCKS, 1.0) | STREAMED
    for (column, row), opacity in opacities.items():
        colour = mixed(NIGHT, mixed(WARM, COLD, (column + row) / 6), opacity)
        x, y = left + column * step, top + row * step
        box = (x, y, x + side, y + side)
        draw.rounded_rectangle(box, 0.2 * side, colour)


def icon() -> Image.Image:
    """The mark on a dark ground with round corners."""
    size = FINER * ICON[0]
    ground = Image.new("RGB", (size, size), NIGHT)
    draw_mark(ground, 0.2 * size, 0.16 * size, 0.68 * size)
    corners = Image.new("L", ground.size, 0)
    box = (0, 0, size - 1, size - 1)
    ImageDraw.Draw(corners).rounded_rectangle(box, 0.18 * size, 255)
    ground.putalpha(corners)
    return ground.resize(ICON, Image.Resampling.LANCZOS)


def pictures() -> list[Image.Image]:
    """What the pocket model draws of the prompts."""
    pipeline = FluxPipeline.from_pocket()
    return [
        to_pil(pipeline(prompt, width=256, height=256, seed=seed, **POCKET_SAMPLING).images[0])
        for seed, prompt in enumerate(PROMPTS, start=3)
    ]


def text(draw: ImageDraw.ImageDraw, place: tuple[float, float], words: str, size: int, **style):
    """Words from their left middle on; ``bold`` and ``fill`` are their style."""
    weight = "bold" if style.pop("bold", False) else "normal"
    properties = font_manager.FontProperties(family="DejaVu Sans", weight=weight)
    font = ImageFont.truetype(font_manager.findfont(properties), size)
    draw.text(place, words, font=font, anchor="lm", **style)


def banner() -> Image.Image:
    """The mark, the name, what it is for, and six pictures."""
    width, height = (FINER * side for side in BANNER)
    ground = Image.new("RGB", (width, height), NIGHT)
    draw_mark(ground, 0.055 * width, 0.25 * height, 0.3 * height)
    draw = ImageDraw.Draw(ground)
    text(draw, (0.162 * width, 0.4 * height), "FluxFit", round(0.19 * height), bold=True, fill=SNOW)
    lines = ("FLUX in the memory you have,", "at the speed your card allows.")
    for i, line in enumerate(lines):
        place = 0.055 * width, (0.7 + 0.095 * i) * height
        text(draw, place, line, round(0.058 * height), fill=MIST)
    side, gap = round(0.33 * height), round(0.045 * height)
    for i, picture in enumerate(pictures()):
        column, row = i % 3, i // 3
        x = width - (3 - column) * (side + gap)
        y = (height - 2 * side - gap) // 2 + row * (side + gap)
        corners = Image.new("L", (side, side), 0)
        ImageDraw.Draw(corners).rounded_rectangle((0, 0, side - 1, side - 1), 0.08 * side, 255)
        ground.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, y), corners)
    return ground.resize(BANNER, Image.Resampling.LANCZOS)


def main() -> None:
    icon().save(ASSETS / "icon.png", optimize=True)
    banner().quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(
        ASSETS / "banner.png", optimize=True
    )


if __name__ == "__main__":
    main()
