"""Run inside a host's interpreter: its samplers draw the same with its own loader and with ours.

    python bridge.py COMFYUI FLUXFIT

The pocket model in float32 by either loader, small latents, few steps. Prints one line a check,
``ok NAME``, ``skip NAME`` where the host lacks a node, or ``fail NAME`` with what
happened. The checks stand in ``bridge_*.py``.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bridge_conditioning
import bridge_flux2
import bridge_kin
import bridge_patches
import bridge_pictures
import bridge_sampling
import bridge_weights
from bridge_setup import CHECKS
from in_process import CHOSEN, has, torch

__all__ = [
    "bridge_conditioning",
    "bridge_flux2",
    "bridge_kin",
    "bridge_patches",
    "bridge_pictures",
    "bridge_sampling",
    "bridge_weights",
]

if __name__ == "__main__":
    with torch.inference_mode():
        for name in CHOSEN or CHECKS:
            function, needs = CHECKS[name]
            if not all(map(has, needs)):
                print("skip", name, flush=True)
                continue
            try:
                function()
                print("ok", name, flush=True)
            except Exception as error:
                traceback.print_exc()
                reason = " ".join(str(error).split())
                print("fail", name, f"{type(error).__name__}: {reason}"[:500], flush=True)
