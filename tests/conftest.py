"""Opens this folder as the package ``fluxfit``, as the host does, so that nodes can be tested."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FLUXFIT_CACHE", str(ROOT / ".cache"))
# Before anything imports Triton: without a card its kernels are interpreted.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

runpy.run_path(str(ROOT / "__main__.py"), run_name="fluxfit_command")["open_package"]()
