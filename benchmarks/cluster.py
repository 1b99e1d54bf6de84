"""How many pictures a second two workers on a local Ray cluster draw, against one.

    python -m benchmarks.cluster --count 300 --rounds 5

Jobs of the pocket model (128x128, four steps) through the whole of ``fluxfit batch``, by one worker
and by two in turns, a thread each: each worker alone has a core. Gives pictures a second between
the first results and the last, the command's seconds with its start, and the median of the ratios
of neighbouring rounds. ``--local`` adds the same without Ray.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.wild.cluster import command, done, pocket_graph

#: Results before the clock starts: every worker has its models by then.
WARM, LOOK = 20, 0.02


def rate(folder: Path, name: str, count: int, workers: int) -> tuple[float, float]:
    """Pictures a second, and seconds of the whole command."""
    more = ("--ray", "--workers", str(workers)) if workers else ()
    manifest = folder / name / "manifest.jsonl"
    started = time.monotonic()
    process = subprocess.Popen(
        ["env", "OMP_NUM_THREADS=1", *command(folder, name, count, *more)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first, at_first = 0, started
    while process.poll() is None and done(manifest) < count:
        if not first and done(manifest) >= WARM:
            first, at_first = done(manifest), time.monotonic()
        time.sleep(LOOK)
    drawing = time.monotonic() - at_first
    if process.wait():
        raise SystemExit(f"the command ended with {process.returncode}")
    return (count - first) / drawing, time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description="Two workers on a Ray cluster against one.")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local", action="store_true", help="measure without Ray too")
    args = parser.parse_args()
    ratios, wholes = [], []
    kinds = (1, 2, *((0,) if args.local else ()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pocket_graph(folder)
        for number in range(args.rounds):
            rates = {k: rate(folder, f"{number}-{k}", args.count, k) for k in kinds}
            ratios.append(rates[2][0] / rates[1][0])
            wholes.append(rates[1][1] / rates[2][1])
            words = ", ".join(
                f"{f'{k} workers' if k else 'without Ray'} {a:.2f}/s ({s:.1f} s)"
                for k, (a, s) in rates.items()
            )
            print(f"{words}: {ratios[-1]:.2f} times, with the start {wholes[-1]:.2f}", flush=True)
    print(
        f"median of {args.rounds}: {statistics.median(ratios):.2f} times as many pictures a "
        f"second, the command with its start {statistics.median(wholes):.2f} times as fast"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
