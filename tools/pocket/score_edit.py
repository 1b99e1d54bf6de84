"""Score the pocket edit LoRA: does a picture show the edit, and nothing else changed?

    python -m tools.pocket.score_edit
    python -m tools.pocket.score_edit .cache/pocket/loras/fluxfit_pocket_edit.safetensors

Edits of scenes of one thing to held-out ones, judged by pixels alone; a sheet shows reference,
drawn and wanted.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flux_core import FluxPipeline, load_lora
from flux_core.lora import LoraStack
from flux_core.pocket import POCKET_SAMPLING, PocketSampling, pocket_file
from tools.pocket.edits import COLOUR, KINDS, Edit, drawn_alike, editable_scene, random_edit, shows
from tools.pocket.scenes import Scene
from tools.pocket.score import SIDE, drawn

#: A reference and a sentence leave little open, so that no negative prompt is needed.
EDIT_SAMPLING: PocketSampling = {**POCKET_SAMPLING, "cfg": 1.0}


def cases(count: int, kind: str) -> Iterator[tuple[str, Scene, Scene]]:
    """Sentences with their scenes before and after, of which training showed none."""
    rng = random.Random(f"held-out edits {kind}")
    for _ in range(count):
        edited = scene = editable_scene(rng, things=1)
        edit: Edit | None = None
        while edit is None or not edited.held_out:
            scene = editable_scene(rng, things=1)
            edit = random_edit(scene, rng, kind)
            edited = edit.apply(scene)
        yield edit.sentence(scene, rng), scene, edited


def score(
    pipeline: FluxPipeline, loras: LoraStack, kind: str, count: int, **settings
) -> tuple[int, list]:
    """How many edits of a kind come out right, and rows of pictures (SIDE, 3 SIDE, 3) uint8."""
    right, rows = 0, []
    for seed, (text, scene, edited) in enumerate(cases(count, kind)):
        before, wanted = drawn_alike([scene, edited], SIDE, f"{kind} {seed}")
        reference = torch.from_numpy(before.copy())[None]
        options = {"reference": reference, "reference_size": "own", "loras": loras} | settings
        picture = drawn(pipeline, text, seed, **options)
        good = shows(picture, edited)
        right += good
        print(f"  {'right' if good else 'wrong'}: {text!r}", flush=True)
        rows.append(np.concatenate([before, picture, wanted], axis=1))
    return right, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lora", type=Path, nargs="?", default=pocket_file("loras", "_edit"))
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[COLOUR])
    parser.add_argument("--steps", type=int, default=EDIT_SAMPLING["steps"])
    parser.add_argument("--cfg", type=float, default=EDIT_SAMPLING["cfg"])
    parser.add_argument("--out", type=Path, default=Path("output"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    pipeline = FluxPipeline.from_pocket()
    loras = [(load_lora(args.lora), 1.0)]
    for kind in args.kinds:
        settings = {"steps": args.steps, "cfg": args.cfg}
        right, rows = score(pipeline, loras, kind, args.count, **settings)
        print(f"{kind}: {right} of {args.count} edits are right")
        Image.fromarray(np.concatenate(rows)).reduce(2).save(args.out / f"score_edit_{kind}.png")


if __name__ == "__main__":
    main()
