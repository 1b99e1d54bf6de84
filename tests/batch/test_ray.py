"""Batches on a cluster of this machine; skipped where Ray, an extra, is not installed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from fluxfit.batch import ray_workers
from fluxfit.batch.dispatch import Ready
from fluxfit.batch.draw import Drawer
from fluxfit.batch.grid import read_grid
from fluxfit.batch.jobs import Job
from fluxfit.batch.node_files import NeededFile, NodeFiles
from fluxfit.batch.progress import BatchProgress
from fluxfit.batch.ray_cluster import connected
from fluxfit.batch.ray_workers import RayWorkers, token_in
from fluxfit.batch.run import Batch, BatchSettings, LocalWorker, run_batch
from fluxfit.nodes.headless import from_api

from flux_core.errors import ConfigError
from flux_core.pocket import POCKET

from ..wild.cluster import workers_of
from .fake_batch import api_graph
from .sleeping_drawer import SLOWNESS

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="ends processes by signals")
REASON = "has no file 'large.safetensors'"
ROOT = Path(__file__).resolve().parents[2]
SLEEPING = "tests.batch.sleeping_drawer"


def job(number: int, **values: Any) -> Job:
    return Job(f"{number:024x}", number, values)


def sleepers(folder: Path, workers: int, messages: list[str]) -> RayWorkers:
    """Workers that only take time; of the driver's own, the graph's files are hashed."""
    return RayWorkers(
        api_graph(),
        folder,
        workers=workers,
        drawing=SLEEPING,
        say=messages.append,
        gpus_per_worker=0,
    )


def test_eight_workers_of_three_speeds_end_within_one_job(tmp_path):
    length, ended, drawn = 0.15, {}, Counter()
    jobs = [job(number, **{"1.sleep": length}) for number in range(150)]
    started = time.monotonic()
    for result in sleepers(tmp_path, 8, []).results(iter(jobs)):
        assert result.error is None
        ended[result.worker] = time.monotonic() - started
        drawn[result.worker] += 1
    assert len(ended) == 8 and sum(drawn.values()) == 150
    slack = 0.2  # for a machine that does other things
    assert max(ended.values()) - min(ended.values()) < length * max(SLOWNESS) + slack
    by_speed = {int(name.rpartition("/")[2]): count for name, count in drawn.items()}
    assert by_speed[0] + by_speed[1] + by_speed[2] > by_speed[3] + by_speed[4] + by_speed[5]


def test_workers_without_a_card_see_none(tmp_path):
    workers = sleepers(tmp_path, 1, [])
    with connected("local", 1) as ray, token_in(tmp_path) as token:
        pool = workers.pool(ray, token)
        pool.start()
        assert isinstance(pool.wait(), Ready) and list(pool.makes) == ["torch none on cards ''"]
        pool.close()


def test_a_job_that_kills_its_workers_fails_alone(tmp_path):
    messages: list[str] = []
    jobs = [job(number, **({"1.kill": 1} if number == 3 else {})) for number in range(12)]
    results = list(sleepers(tmp_path, 2, messages).results(iter(jobs)))
    assert Counter(r.job.id for r in results) == Counter(j.id for j in jobs)
    (failed,) = [result for result in results if result.error]
    assert failed.job == jobs[3] and not failed.retryable
    assert "3 workers died" in str(failed.error)
    assert sum("died" in line for line in messages) == 3


def test_a_batch_without_a_fit_node_ends_with_the_reason(tmp_path):
    messages: list[str] = []
    jobs = [job(number, **{"1.unfit": REASON}) for number in range(4)]
    with pytest.raises(FileNotFoundError, match=f"node .*: {REASON}"):
        list(sleepers(tmp_path, 2, messages).results(iter(jobs)))
    assert len(messages) == 1 and "nothing is drawn there" in messages[0]


def test_files_that_differ_from_the_drivers_are_told_by_node_and_name(tmp_path, monkeypatch):
    look = NodeFiles.look

    def other(self: NodeFiles, file: Any) -> NeededFile:
        return look(self, file)._replace(digest="f" * 64)

    monkeypatch.setattr(NodeFiles, "look", other)
    workers = RayWorkers(api_graph(), tmp_path, workers=1, say=lambda line: None)
    with pytest.raises(FileNotFoundError, match=r"node .*safetensors.* expected ffffffffffff"):
        list(workers.results(iter([job(1)])))


def draw(folder: Path, make: Callable[[dict], Any], count: int, say: Any = None) -> dict[str, Any]:
    """A small batch of the pocket model; hashes of pixels by job."""
    graph = api_graph()
    batch = Batch(from_api(graph), None, read_grid([f"FluxSampler.seed=1..{count}"]), {}, folder)
    progress = BatchProgress()
    progress.say = say or progress.say  # type: ignore[method-assign]
    summary = run_batch(batch, BatchSettings(), lambda: make(graph), progress)
    assert (summary.done, summary.drawn, summary.failed) == (count, count, 0)
    lines = (folder / "manifest.jsonl").read_text().splitlines()[1:]
    entries = [json.loads(line) for line in lines]
    assert len(entries) == count
    for entry in entries:
        assert (folder / entry["files"][0]).is_file()
    return {entry["job"]: entry["pixels"] for entry in entries}


def test_pictures_are_the_same_whoever_draws_and_whoever_dies(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = draw(tmp_path / "alone", lambda graph: LocalWorker(Drawer(graph)), 6)
    finally:
        torch.set_num_threads(threads)
    messages: list[str] = []

    class Deadly(RayWorkers):
        """Ends one of its workers once the first picture is there."""

        def results(self, jobs: Any) -> Any:
            for number, result in enumerate(super().results(jobs)):
                if number == 0:
                    os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
                yield result

    drawn = draw(
        tmp_path / "ray",
        lambda graph: Deadly(graph, tmp_path / "ray", workers=2, say=messages.append),
        6,
    )
    assert drawn == alone
    assert sum("died" in line for line in messages) <= 1  # it may have been about to end


class Command:
    """``fluxfit batch --ray`` in a process of its own."""

    def __init__(self, folder: Path, count: int) -> None:
        graph = folder / "graph.json"
        graph.write_text(json.dumps(api_graph()))
        self.out = folder / "out"
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(ROOT), "batch", str(graph), "--out", str(self.out)),
                *("--grid", f"FluxSampler.seed=1..{count}", "--ray", "--workers", "2"),
            ],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for(self, count: int) -> list[int]:
        """Wait until so many jobs are done; the workers."""
        manifest = self.out / "manifest.jsonl"
        for _ in range(3000):
            lines = manifest.read_text().count("\n") - 1 if manifest.exists() else 0
            if lines >= count or self.process.poll() is not None:
                break
            time.sleep(0.02)
        return workers_of(self.process.pid)


def gone(pids: list[int], seconds: float = 20) -> bool:
    """Whether processes end in that time."""
    for _ in range(int(seconds * 10)):
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


def test_an_interrupt_ends_workers_and_the_next_command_goes_on(tmp_path):
    first = Command(tmp_path, 300)
    workers = first.wait_for(3)
    first.process.send_signal(signal.SIGINT)
    out, err = first.process.communicate(timeout=60)
    assert first.process.returncode == 130, err
    assert "Traceback" not in err and "goes on" in err and not out
    assert len(workers) == 2 and gone(workers)
    second = Command(tmp_path, 5)
    out, err = second.process.communicate(timeout=120)
    assert second.process.returncode == 0, err
    jobs = [
        json.loads(line)["job"] for line in (second.out / "manifest.jsonl").open() if "job" in line
    ]
    assert len(set(jobs)) == len(jobs) >= 5


def test_a_driver_that_is_killed_takes_its_workers_with_it(tmp_path):
    first = Command(tmp_path, 300)
    workers = first.wait_for(2)
    first.process.kill()
    first.process.communicate()
    assert len(workers) == 2 and gone(workers)


@pytest.fixture
def two_nodes(tmp_path):
    """The address of a cluster of two nodes with a core, one of which has another transformer, and
    of one without."""
    from ray.cluster_utils import Cluster  # type: ignore[import-not-found]

    folder = tmp_path / "models" / "diffusion_models"
    folder.mkdir(parents=True)
    name = "fluxfit_pocket.safetensors"
    (folder / name).write_bytes((POCKET / "diffusion_models" / name).read_bytes()[:-1] + b"?")
    cluster = Cluster()
    cluster.add_node(num_cpus=1, include_dashboard=False)
    cluster.add_node(num_cpus=0)
    cluster.add_node(num_cpus=1, env_vars={"FLUXFIT_MODELS": str(tmp_path / "models")})
    yield cluster.address
    cluster.shutdown()


def test_a_node_with_other_models_is_left_out_and_the_other_draws_all(two_nodes, tmp_path):
    messages: list[str] = []
    out = tmp_path / "out"
    drawn = draw(
        out, lambda graph: RayWorkers(graph, out, address=two_nodes, say=messages.append), 5
    )
    assert len(drawn) == 5
    (line,) = messages
    assert "fluxfit_pocket.safetensors" in line and "nothing is drawn there" in line


def test_pictures_come_back_as_bytes_where_the_folder_is_not_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_workers, "token_in", lambda folder: nullcontext("another"))
    out = tmp_path / "out"
    assert len(draw(out, lambda graph: RayWorkers(graph, out, workers=1), 3)) == 3


def test_without_a_cluster_at_the_address_it_is_told(tmp_path):
    workers = RayWorkers(api_graph(), tmp_path, address="127.0.0.1:1")
    with pytest.raises(ConfigError, match="--ray 127.0.0.1:1: no cluster there"):
        list(workers.results(iter([job(1)])))


def test_a_node_without_room_is_not_waited_for(two_nodes, tmp_path, monkeypatch):
    look = NodeFiles.look
    monkeypatch.setattr(NodeFiles, "look", lambda s, file: look(s, file)._replace(digest="f" * 64))
    workers = RayWorkers(api_graph(), tmp_path, address=two_nodes, say=lambda line: None)
    with pytest.raises(FileNotFoundError, match="is another file than the driver's"):
        list(workers.results(iter([job(1)])))
