"""Draws docs/data_flow.png: how data flows from a prompt to a picture.

python -m tools.draw_architecture
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TARGET = Path(__file__).resolve().parents[1] / "docs" / "data_flow.png"
#: Text, centre and colour of every box.
BOXES = {
    "callers": ("nodes/   cli   pipeline   train/   calibration/", (5, 5.4), "#dbe9ff"),
    "files": ("files\nsafetensors, GGUF", (1, 3.8), "#eeeeee"),
    "checkpoint": ("checkpoint/\ndetect, map keys, fill", (1, 2.3), "#e3f4dd"),
    "quant": ("quant/\nformats, kernels", (1, 0.8), "#e3f4dd"),
    "sampling": ("sampling/\nnoise, sigmas, steps", (5, 3.8), "#fff0d0"),
    "models": ("models/\nencoders, blocks, VAE", (5, 0.8), "#e3f4dd"),
    "offload": ("offload/\npolicy, plan, ring", (5, 2.3), "#fff0d0"),
    "lora": ("lora/\nbeside weights", (9, 2.3), "#fff0d0"),
    "report": ("report/\npictures, plots", (9, 0.8), "#eeeeee"),
}
#: From, to, and what flows.
ARROWS = (
    ("callers", "sampling", "prompt, seed, settings"),
    ("files", "checkpoint", "tensors"),
    ("checkpoint", "quant", "weights"),
    ("quant", "models", "linear layers"),
    ("sampling", "offload", "latents, conditioning"),
    ("offload", "models", "blocks on the device"),
    ("lora", "offload", "branches"),
    ("models", "report", "latents, pixels"),
)


def draw() -> None:
    figure, axes = plt.subplots(figsize=(11, 6))
    axes.set_xlim(-0.8, 10.8)
    axes.set_ylim(0, 6)
    axes.axis("off")
    boxes = {}
    for name, (text, (x, y), colour) in BOXES.items():
        style = {"boxstyle": "round,pad=0.5", "facecolor": colour, "edgecolor": "#555555"}
        boxes[name] = axes.text(x, y, text, ha="center", va="center", fontsize=11, bbox=style)
    figure.canvas.draw()
    for start, end, text in ARROWS:
        axes.annotate(
            "",
            xy=BOXES[end][1],
            xytext=BOXES[start][1],
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#333333",
                "patchA": boxes[start].get_bbox_patch(),
                "patchB": boxes[end].get_bbox_patch(),
            },
        )
        (x0, y0), (x1, y1) = BOXES[start][1], BOXES[end][1]
        level = y0 == y1
        axes.text(
            (x0 + x1) / 2 + (0 if level else 0.1),
            (y0 + y1) / 2 + (0.12 if level else 0),
            text,
            ha="center" if level else "left",
            va="bottom" if level else "center",
            fontsize=9,
            color="#333333",
        )
    figure.savefig(TARGET, dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    draw()
