"""Draw the documentation's timeline: a streamed run of the pocket model.

python -m tools.draw_timeline [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from flux_core import FluxPipeline, OffloadPolicy
from flux_core.report.timeline import timeline

FILE = Path(__file__).resolve().parents[1] / "assets" / "timeline.png"


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    pipeline = FluxPipeline.from_pocket(precision="int8", policy=OffloadPolicy("stream"))
    drawn = pipeline("a large red circle on white", width=256, height=256, steps=6)
    print(drawn.report)
    Image.fromarray((timeline(drawn.report) * 255).byte().numpy()).quantize(64).save(path)
    print(f"picture: {path}")


if __name__ == "__main__":
    main()
