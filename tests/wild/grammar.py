"""Damaged files by the thousand, over all readers.

    python -m tests.wild.grammar --count 10000

Each loads or gives a project error of one line. Also counted: those that took more than two seconds
of this process's time, or a gigabyte of memory. Ends with 1 where there is any, saying how to make
the file again: reader and number.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from flux_core.errors import LONGEST, FileError

from .readers import READERS, Reader

SECONDS, BYTES = 2.0, 1e9


def fault_of(reader: Reader, number: int, folder: Path) -> str:
    """What is wrong with how one file is read; empty where nothing is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    reader.write(folder, random.Random(f"{reader.name} {number}"))
    try:
        reader.read(folder)
    except FileError as error:
        if "\n" in str(error) or len(str(error)) > LONGEST:
            return f"is told in more than a line: {str(error)[:200]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return ""


def most_memory() -> int:
    """The most bytes that this process ever held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged files, over all readers.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--reader", action="append", choices=[r.name for r in READERS])
    parser.add_argument("--number", type=int, help="this file alone")
    args = parser.parse_args()
    readers = [r for r in READERS if not args.reader or r.name in args.reader]
    faults: list[str] = []
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.count):
            reader = readers[number % len(readers)]
            which = number // len(readers) if args.number is None else args.number
            before, started = most_memory(), time.process_time()
            fault = fault_of(reader, which, Path(folder) / "file")
            seconds, grown = time.process_time() - started, most_memory() - before
            if not fault and which and seconds > SECONDS:
                fault = f"takes {seconds:.1f} s"
            if not fault and which and grown > BYTES:
                fault = f"takes {grown / 1e9:.1f} GB"
            counts[reader.name] += 1
            if fault:
                faults.append(f"{reader.name} {which}: {fault}")
                print(faults[-1], flush=True)
            if args.number is not None:
                break
    print(f"{sum(counts.values())} files over {len(counts)} readers: {len(faults)} faults")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
