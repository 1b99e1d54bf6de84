"""Many pictures in one process, over sizes, precisions, LoRAs and policies: does memory stay level?

    python -m tests.wild.long_run --count 500

Prints resident memory, open descriptors and live tensors as it goes, and at the end what grew after
the first 50 pictures: the median of the last 25 against that of 25 before. Ends with 1 where it is
more than 20 MB, or where a descriptor or a temporary file is left.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path

from flux_core import FluxPipeline, load_lora

from .faults import POLICIES, small_lora, tensors

LEVEL, GROWTH = 50, 20_000_000
PRECISIONS = ("bf16", "int8", "fp8_scaled")


def resident() -> int:
    """Bytes that this process has in memory, after what is unused was let go."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory over many pictures.")
    parser.add_argument("--count", type=int, default=500)
    args = parser.parse_args()
    rng = random.Random(0)
    pipelines = {p: FluxPipeline.from_pocket(precision=p) for p in PRECISIONS}
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = str(Path(folder) / "temporary")  # what others leave is not counted
        Path(tempfile.tempdir).mkdir()
        path = small_lora(Path(folder) / "lora.safetensors", pipelines["bf16"])
        readings, files = [], 0
        for number in range(1, args.count + 1):
            pipeline = pipelines[rng.choice(PRECISIONS)]
            pipeline.policy = rng.choice(list(POLICIES.values()))
            loras = [(load_lora(path), rng.random())] if rng.random() < 0.5 else []
            pipeline(
                f"a red circle, number {number}",
                width=16 * rng.randint(2, 16),
                height=16 * rng.randint(2, 16),
                steps=1,
                seed=number,
                loras=loras,
            )
            readings.append(resident())
            if number == LEVEL:
                files = descriptors()
            if number % 25 == 0:
                live = sum(1 for _ in tensors())
                print(
                    f"{number}: {readings[-1] / 1e6:.1f} MB, {descriptors()} descriptors, "
                    f"{live} tensors",
                    flush=True,
                )
        opened, left = descriptors() - files, os.listdir(tempfile.gettempdir())
    level = statistics.median(readings[LEVEL - 25 : LEVEL])
    grown = statistics.median(readings[-25:]) - level
    print(
        f"after {LEVEL} pictures: {grown / 1e6:+.1f} MB, {opened:+d} descriptors, "
        f"{len(left)} temporary files"
    )
    return int(grown > GROWTH or opened > 0 or bool(left))


if __name__ == "__main__":
    sys.exit(main())
