"""Several processes that train one LoRA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import tiny_models
from tests.training_runs import train_config

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
    train_config(tmp_path)  # draws the pictures: five, so that a batch is shared unevenly
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    results = []
    for count, batch in ((1, 4), (2, 2)):
        out = tmp_path / f"by-{count}"
        launch = [
            "-m",
            "torch.distributed.run",
            f"--nproc-per-node={count}",
            "--rdzv-backend=c10d",
            "--rdzv-endpoint=localhost:0",
        ]
        done = subprocess.run(
            [sys.executable, *launch, str(script), str(out), str(batch), str(tmp_path)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        results.append(torch.load(out))
    (one, one_losses, alone), (two, two_losses, both) = results
    assert (alone, both) == (1, 2)
    assert one_losses == pytest.approx(two_losses, rel=1e-5)
    assert tiny_models.relative(two, one) < 1e-3
