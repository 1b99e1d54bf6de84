"""Train the pocket edit LoRA: a picture as reference and a sentence of what to change.

    python -m tools.pocket.train_edit --side 128 --steps 1400
    python -m tools.pocket.train_edit --side 256 --steps 300 --init edit_128 --batch 8
    python -m tools.pocket.train_edit --export edit_256

The reference's latents stand behind the noisy ones by the method ``offset``, in training as in
drawing. The model is frozen; first small pictures, whose positions are those of large ones
(``train_transformer.canvas_ids``). It resumes where it was stopped, and stops after ``--minutes``.

No LoRA of it is shipped: 680 steps of 16 on small pictures, all that was tried, teach the model to
look at the reference, not yet to follow the sentence (``score_edit``).
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from flux_core import load_transformer
from flux_core.lora.save import save_lora
from flux_core.lora.trained import TrainedLora
from flux_core.pocket import pocket_file
from flux_core.sampling.images import to_pixels
from flux_core.sampling.latents import pack, standardise, text_ids
from tools.pocket import cache
from tools.pocket.common import WORKERS, Run, arguments, averaged
from tools.pocket.edits import drawn_alike, editable_scene, random_edit
from tools.pocket.train_transformer import canvas_ids, timesteps

RANK = 48
TARGETS = ("attention", "mlp")
EDITS = 3  # of each scene; a family is a scene and its edits
WORDINGS = 2  # of each edit, and of its way back
DROPPED = 0.1
FILE = "fluxfit_pocket_edit.safetensors"


def family(index: int, side: int) -> tuple[Tensor, list[str]]:
    """Pictures (1 + EDITS, 3, side, side) of a scene and its edits, and ``WORDINGS`` sentences for
    each way there, then for each way back."""
    rng = random.Random(f"edit {index}")
    while True:
        scene = editable_scene(rng)
        edits = [random_edit(scene, rng) for _ in range(EDITS)]
        after = [edit.apply(scene) for edit in edits]
        if not any(edited.held_out for edited in after):
            break
    there = [edit.sentence(scene, rng) for edit in edits for _ in range(WORDINGS)]
    back = [
        edit.undo(scene).sentence(edited, rng)
        for edit, edited in zip(edits, after, strict=True)
        for _ in range(WORDINGS)
    ]
    pictures = torch.from_numpy(drawn_alike([scene, *after], side, f"jitter {index}"))
    return to_pixels(pictures.float() / 255), there + back


@torch.no_grad()
def build(out: Path, side: int, count: int, device: str) -> dict[str, Tensor]:
    """Latents (count, 1 + EDITS, 16, h, w) and texts (count, 2 EDITS, WORDINGS, ...), one file."""
    path = out / f"edits_{side}_{count}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    encoders, vae = (part.to(device) for part in cache.open_encoders())
    parts: dict[str, list[Tensor]] = {"latents": [], "context": [], "pooled": []}
    for index in range(count):
        pictures, sentences = family(index, side)
        with torch.autocast(device, torch.bfloat16):
            latents = vae.encode(pictures.to(device)).float().cpu()
        parts["latents"].append(standardise(latents).bfloat16())
        text = encoders.encode(sentences)
        for name, value in (("context", text.context), ("pooled", text.pooled)):
            parts[name].append(value.unflatten(0, (2 * EDITS, WORDINGS)).bfloat16().cpu())
        if index % 100 == 0:
            print(f"edits {side}: {index}/{count}", flush=True)
    data = {name: torch.stack(values) for name, values in parts.items()}
    empty = encoders.encode([""])
    data["no_context"], data["no_pooled"] = empty.context.cpu(), empty.pooled.cpu()
    out.mkdir(parents=True, exist_ok=True)
    torch.save(data, path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
    return data


def batch(data: dict[str, Tensor], seed: int, count: int) -> dict[str, Tensor]:
    """Inputs of the transformer and the velocity of the picture's tokens that it should give."""
    g = torch.Generator().manual_seed(seed)
    pick = torch.randint(len(data["latents"]), (count,), generator=g)
    way = torch.randint(2 * EDITS, (count,), generator=g)
    which = torch.randint(WORDINGS, (count,), generator=g)
    context, pooled = (data[name][pick, way, which].float() for name in ("context", "pooled"))
    empty = torch.rand(count, generator=g) < DROPPED
    context = torch.where(empty[:, None, None], data["no_context"].float(), context)
    pooled = torch.where(empty[:, None], data["no_pooled"].float(), pooled)
    edited = way % EDITS + 1
    there = way < EDITS
    zero = torch.zeros_like(edited)
    reference = data["latents"][pick, torch.where(there, zero, edited)].float()
    x = data["latents"][pick, torch.where(there, edited, zero)].float()
    noise = torch.randn(x.shape, generator=g)
    t = timesteps(count, g)
    ids = canvas_ids(x.shape[-1])
    behind = ids.clone()
    behind[:, 0] = 1  # where ``offset`` puts the first reference
    return {
        "img": torch.cat([pack(torch.lerp(x, noise, t[:, None, None, None])), pack(reference)], 1),
        "target": pack(noise - x),
        "timesteps": t,
        "txt": context,
        "y": pooled,
        "guidance": 1 + 4 * torch.rand(count, generator=g),
        "img_ids": torch.cat([ids, behind]),
        "txt_ids": text_ids(context.shape[1]),
    }


def main() -> None:
    args = arguments(
        __doc__, side=128, count=800, steps=1400, batch=16, lr=2e-3, init="", export="", minutes=45
    )
    model = load_transformer(pocket_file("diffusion_models"), precision="fp32").to(args.device)
    lora = TrainedLora(model, TARGETS, RANK, RANK).to(args.device)
    if args.export:
        lora.load_state_dict(averaged(args.out, args.export))
        folder = args.out / "loras"
        folder.mkdir(parents=True, exist_ok=True)
        path = save_lora(model, lora.factors(), folder / FILE, alpha=RANK, format="kohya")
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
        return
    data = build(args.out, args.side, args.count, args.device)
    if args.init:
        lora.load_state_dict(averaged(args.out, args.init))
    optimizer = torch.optim.AdamW(lora.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0)
    run = Run(f"edit_{args.side}", args.out, lora, [optimizer], args.steps, decay=0.995)
    end = time.monotonic() + 60 * args.minutes
    with lora.on(model):
        for seed in run:
            inputs = batch(data, seed, args.batch // WORKERS)
            inputs = {name: value.to(args.device) for name, value in inputs.items()}
            target = inputs.pop("target")
            with torch.autocast(args.device, torch.bfloat16):
                velocity = model(**inputs)[:, : target.shape[1]]
            run.update(F.mse_loss(velocity.float(), target))
            if time.monotonic() > end:
                run.save()
                break


if __name__ == "__main__":
    main()
