"""Workers and drivers killed while a batch is drawn on a local Ray cluster: is anything lost?

    python -m tests.wild.cluster --count 1000 --workers-killed 20 --drivers-killed 5 --folder /tmp/c

Draws jobs of the pocket model with two workers, ends workers and the command itself by SIGKILL at
random moments, and starts the command again. Then the same jobs are drawn alone in one process.
Ends with 1 unless there are exactly as many pictures as jobs, each equal to the bit to the one that
was drawn alone, and each in the manifest once. Stopped, it goes on where it was. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flux_core.receipts import pixels_hash, read_png_texts

ROOT = Path(__file__).resolve().parents[2]
SEED = 15
#: How Linux calls a process of the actor, and seconds between looks at the manifest.
WORKER, LOOK = "ray::RayWorker", 0.05
#: Starts of the command that may end by themselves before all is drawn.
MOST_FAILURES = 3


def pocket_graph(folder: Path) -> Path:
    """The pocket model at 128x128 in four steps, as an API prompt."""
    graph = json.loads((ROOT / "workflows" / "api" / "text_to_image.json").read_text())
    for item in graph.values():
        for name, value in {"steps": 4, "width": 128, "height": 128, "cfg": 1.0}.items():
            if name in item["inputs"]:
                item["inputs"][name] = value
    path = folder / "pocket.json"
    path.write_text(json.dumps(graph))
    return path


def command(folder: Path, out: str, count: int, *more: str) -> list[str]:
    grid = f"FluxSampler.seed=1..{count}"
    return [
        *(sys.executable, str(ROOT), "batch", str(folder / "pocket.json")),
        *("--out", str(folder / out), "--grid", grid, *more),
    ]


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        return subprocess.Popen(
            arguments, cwd=log.parent, env=environment, stdout=file, stderr=file
        )


def entries(manifest: Path) -> Iterator[dict[str, Any]]:
    """Whole lines of a manifest that say that a job is done."""
    lines = manifest.read_bytes().split(b"\n")[:-1] if manifest.exists() else []
    for entry in map(json.loads, lines):
        if "files" in entry:
            yield entry


def done(manifest: Path) -> int:
    return manifest.read_bytes().count(b'"files": ') if manifest.exists() else 0


def children() -> dict[int, list[int]]:
    """Processes by who started them."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        below.setdefault(parent, []).append(int(path.parent.name))
    return below


def workers_of(driver: int) -> list[int]:
    """Processes that draw for a driver."""
    below, open_, workers = children(), [driver], []
    while open_:
        for pid in below.get(open_.pop(), []):
            open_.append(pid)
            try:
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(WORKER.encode()):
                    workers.append(pid)
            except OSError:
                continue
    return workers


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


class Killer:
    """Ends processes when so many jobs are done, and a random moment after."""

    def __init__(self, args: argparse.Namespace, log: Path) -> None:
        self.rng, self.log = random.Random(SEED), log
        self.plan = sorted(
            (self.rng.randrange(args.count), what)
            for what, times in (("worker", args.workers_killed), ("driver", args.drivers_killed))
            for _ in range(times)
        )
        self.count = Counter(self.noted())
        for what in self.noted():  # in an earlier run of this command
            self.plan.remove(next(item for item in self.plan if item[1] == what))

    def noted(self) -> list[str]:
        return self.log.read_text().split() if self.log.exists() else []

    def look(self, jobs_done: int, driver: subprocess.Popen) -> None:
        """Kill what is due, if it is there."""
        if not self.plan or self.plan[0][0] > jobs_done:
            return
        what = self.plan[0][1]
        time.sleep(self.rng.uniform(0, 0.3))
        victims = [driver.pid] if what == "driver" else workers_of(driver.pid)
        if victims and kill(self.rng.choice(victims)):
            del self.plan[0]
            self.count[what] += 1
            with self.log.open("a") as file:
                print(what, file=file)


def draw_with_deaths(args: argparse.Namespace, folder: Path) -> Counter[str]:
    """Draw all, whoever dies; what was killed."""
    manifest = folder / "out" / "manifest.jsonl"
    killer = Killer(args, folder / "killed.txt")
    arguments = command(folder, "out", args.count, "--ray", "--workers", "2")
    failures = 0
    while done(manifest) < args.count and failures < MOST_FAILURES:
        driver = start(arguments, folder / "driver.log")
        try:
            while driver.poll() is None:
                killer.look(done(manifest), driver)
                time.sleep(LOOK)
        finally:
            driver.kill()
        killed = driver.returncode == -signal.SIGKILL
        failures += not killed
        print(
            f"{done(manifest)} of {args.count} done, {killer.count['worker']} workers and "
            f"{killer.count['driver']} drivers killed, the command ended by "
            f"{'SIGKILL' if killed else driver.returncode}",
            flush=True,
        )
    return killer.count


def report(args: argparse.Namespace, folder: Path, killed: Counter[str]) -> list[str]:
    """What is wrong with what was drawn; prints the counts."""
    noted, alone = (list(entries(folder / name / "manifest.jsonl")) for name in ("out", "alone"))
    files = [path for path in (folder / "out" / "pictures").rglob("*") if path.is_file()]
    times = Counter(entry["job"] for entry in noted)
    expected = {entry["job"]: entry["pixels"] for entry in alone}
    equal = sum(entry["pixels"] == expected.get(entry["job"]) for entry in noted)
    held = {
        path.stem: [pixels_hash(read_png_texts(path)[0])] for path in files if path.suffix == ".png"
    }
    written = sum(held.get(job) == pixels for job, pixels in expected.items())
    adopted = sum(bool(entry.get("adopted")) for entry in noted)
    print(
        f"{args.count} jobs, {killed['worker']} workers and {killed['driver']} drivers killed: "
        f"{len(files)} files, {len(noted)} lines of {len(times)} jobs in the manifest, {adopted} "
        f"pictures found whole, {equal} equal to those drawn alone, {written} files so"
    )
    wrong = {
        "pictures": len(files),
        "lines of the manifest": len(noted),
        "jobs": len(times),
        "equal pictures": equal,
        "equal files": written,
    }
    return [f"{value} {what}" for what, value in wrong.items() if value != args.count]


def main() -> int:
    parser = argparse.ArgumentParser(description="Deaths on a local Ray cluster.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--workers-killed", type=int, default=20)
    parser.add_argument("--drivers-killed", type=int, default=5)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    pocket_graph(folder)
    killed = draw_with_deaths(args, folder)
    alone = start(command(folder, "alone", args.count), folder / "alone.log")
    if alone.wait():
        print(f"drawing alone ended with {alone.returncode}: see {folder / 'alone.log'}")
        return 1
    wrong = report(args, folder, killed)
    for what in wrong:
        print(f"expected {args.count}: {what}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
