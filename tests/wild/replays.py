"""Pictures of all workflows, precisions and policies, drawn again from what they say of themselves.

    python -m tests.wild.replays --count 100

Every workflow that saves a picture is drawn small, with the pocket model or miniature ones of the
real layouts, at precisions and under policies that follow each other; then another process is given
the files alone. Ends with 1 where one of them has other bits.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fluxfit.nodes import headless
from fluxfit.nodes.headless.graph import KNOWN_NODES, input_specs
from fluxfit.nodes.headless.stock_nodes import save_png

from tests.host.small_models import small, write_small_models

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "workflows" / "api"
#: Graphs that train, or that draw a whole table.
LEFT_OUT = ("train_lora", "batch_table")
PRECISIONS = ("bf16", "fp8_e4m3fn", "fp8_e5m2", "fp8_scaled", "int8", "as_stored")
POLICIES = ("none", "component", "stream", "auto")
POLICY_NODE = "900"
#: Graphs with such nodes have precisions of their own.
OF_PRECISION = ("FluxFitCalibrate", "FluxFitMeasurePrecision", "FluxFitPrecisionPlan")


def graphs(count: int) -> Iterator[tuple[str, headless.Graph]]:
    """So many graphs, and what each is: a workflow, a precision, a policy."""
    names = [path.stem for path in sorted(API.glob("*.json")) if path.stem not in LEFT_OUT]
    choices = zip(itertools.cycle(names), range(count), strict=False)
    for name, number in choices:
        turn = number + number // len(names)
        precision = PRECISIONS[turn % len(PRECISIONS)]
        policy = POLICIES[turn // 2 % len(POLICIES)]
        prompt = small(json.loads((API / f"{name}.json").read_text(encoding="utf-8")))
        put_in(prompt, precision, policy, number)
        yield f"{name}, {precision}, {policy}", headless.from_api(prompt)


def put_in(prompt: dict[str, Any], precision: str, policy: str, seed: int) -> None:
    """Change a prompt's precisions, its policy and its seed where it has such."""
    keeps = any(item["class_type"] in OF_PRECISION for item in prompt.values())
    prompt[POLICY_NODE] = {"class_type": "OffloadPolicy", "inputs": {"mode": policy}}
    for item in list(prompt.values()):
        known = KNOWN_NODES.get(item["class_type"])
        for name, (kind, _) in ({} if known is None else input_specs(known)).items():
            if not keeps and "precision" in name and isinstance(kind, list) and precision in kind:
                item["inputs"][name] = precision
            elif name == "policy":
                item["inputs"][name] = [POLICY_NODE, 0]
            elif name == "seed":
                item["inputs"][name] = seed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FLUXFIT_MODELS"] = str(folder / "models")
        os.chdir(folder)
        write_small_models(folder / "models", folder / "input")
        files: dict[str, str] = {}
        for what, graph in graphs(args.count):
            picture = headless.GraphRunner().images(graph)[-1]
            path = save_png(picture.pixels, folder / "output" / "picture", picture.texts)
            files[str(path)] = what
            print(f"drawn {len(files)}: {what}", flush=True)
        command = [sys.executable, str(ROOT), "replay", "--json", *files]
        done = subprocess.run(command, capture_output=True, text=True)
        results = json.loads(done.stdout)["pictures"]
    wrong = [r for r in results if not r.get("same")]
    for result in wrong:
        print(f"{files[result['picture']]}: {result}")
    print(f"{len(results)} pictures drawn again, {len(results) - len(wrong)} with the same bits")
    return 1 if wrong or len(results) < args.count else 0


if __name__ == "__main__":
    sys.exit(main())
