"""Several processes that train one LoRA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny_models
from tests.training_runs import new_trainer, train_config, trained_parameters

ROOT = Path(__file__).resolve().parents[3]

WORKER = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from tests import training_runs
out, batch = Path(sys.argv[1]), int(sys.argv[2])
config = training_runs.train_config(Path(sys.argv[3]), name=out.name, batch=batch, steps=3)
run = training_runs.new_trainer(config, "fp32")
done = run.run()
assert bool(done.files) == run.workers.main
if run.workers.main:
    torch.save([training_runs.trained_parameters(run), done.history.losses, run.workers.count], out)
"""


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    # this process; the pictures are five, so that a batch is shared unevenly
    alone = new_trainer(train_config(tmp_path, name="alone", batch=4, steps=3), "fp32")
    one_losses, one = alone.run().history.losses, trained_parameters(alone)
    script, out = tmp_path / "worker.py", tmp_path / "by-two"
    script.write_text(WORKER)
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    ]
    done = subprocess.run(
        [sys.executable, *launch, str(script), str(out), "2", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    two, two_losses, both = torch.load(out)
    assert (alone.workers.count, both) == (1, 2)
    assert one_losses == pytest.approx(two_losses, rel=1e-5)
    assert tiny_models.relative(two, one) < 1e-3
