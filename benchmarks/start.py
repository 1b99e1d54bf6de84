"""Cold start: seconds from the command to the first step of a picture, and the share of imports.

    python -m benchmarks.start --runs 5

Each run is a process of its own, on the pocket model at 256x256. What imports take is counted by
Python (``-X importtime``) in runs of their own, since counting takes time too; imports that happen
while files are opened and prompts are read count as imports wherever they happen.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What a run does: ``generate`` without its arguments, with a look at the clock between.
CODE = """
import json, sys, time
started = float(sys.argv[1])
marks = {}
def mark(name):
    marks.setdefault(name, (time.time() - started, time.process_time()))
from flux_core import FluxPipeline
mark("imported")
pipeline = FluxPipeline.from_pocket(policy="component", device=sys.argv[2])
mark("opened")
def callback(step, total, picture):
    mark("first step")
pipeline("a red circle", width=256, height=256, steps=2, cfg=2.5, callback=callback)
mark("picture of two steps")
print(json.dumps(marks))
"""


def one_run(device: str, counted: bool) -> tuple[dict[str, tuple[float, float]], float]:
    """Seconds from the start until each mark, and of the processor; and what imports took, where
    that is counted."""
    flags = ["-X", "importtime"] if counted else []
    done = subprocess.run(
        [sys.executable, *flags, "-c", CODE, str(time.time()), device],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout.splitlines()[-1]), seconds_of_imports(done.stderr)


def seconds_of_imports(text: str) -> float:
    """The sum of what modules took themselves, of what ``-X importtime`` prints."""
    rows = (line.removeprefix("import time:").split("|") for line in text.splitlines())
    return sum(int(row[0]) for row in rows if len(row) == 3 and row[0].strip().isdecimal()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    one_run(args.device, False)  # files are in the system's cache from here on
    plain = [one_run(args.device, False)[0] for _ in range(args.runs)]
    counted = [one_run(args.device, True) for _ in range(args.runs)]
    for name in plain[0]:
        seconds, busy = zip(*(marks[name] for marks in plain), strict=True)
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(
            f"{name}: {statistics.median(seconds):.2f} s after the start ({spread}), "
            f"{statistics.median(busy):.2f} s of the processor"
        )
    imports = statistics.median(seconds for _, seconds in counted)
    until = statistics.median(marks["first step"][0] for marks, _ in counted)
    print(f"imports: {imports:.2f} s of {until:.2f} s to the first step, {imports / until:.0%}")


if __name__ == "__main__":
    main()
