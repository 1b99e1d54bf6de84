"""Train the pocket transformer: first on 128x128 pictures, then on 256x256.

    x_t = (1 - t) x + t n,   loss = |v(x_t, t) - (n - x)|^2,   t = shifted sigmoid of a normal

One caption in ten is empty, so that a negative prompt means something. Matrices of the blocks are
trained with Muon, the rest with AdamW.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flux_core import load_transformer
from flux_core.models.config import TransformerConfig
from flux_core.models.transformer import FluxTransformer
from flux_core.pocket import pocket_file
from flux_core.sampling.latents import image_ids, pack, text_ids
from tools.pocket import cache
from tools.pocket.common import WORKERS, Run, arguments, averaged
from tools.pocket.train_text import CLIP_WIDTH, T5_WIDTH

CONFIG = TransformerConfig(
    vec_in_dim=CLIP_WIDTH, context_in_dim=T5_WIDTH, hidden_size=256, depth=2, depth_single_blocks=4
)
SHIFT = 1.0  # more of the steps where the shape is decided: below t = 0.7 little is left to learn
DROPPED = 0.1
CANVAS = 32  # latents along a side of the pictures that the model is made for


def new_transformer() -> FluxTransformer:
    """Random weights; modulations and output begin at zero, so that blocks begin as identity."""
    model = FluxTransformer(CONFIG)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if name.endswith((".lin", "adaLN_modulation.1", "final_layer.linear")):
                nn.init.zeros_(module.weight)
    return model


def optimizers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks but the modulations, AdamW for everything else."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            inner = "_blocks." in name and p.ndim == 2 and not name.startswith("controlnet")
            (matrices if inner and ".lin." not in name else rest).append(p)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def timesteps(count: int, generator: torch.Generator) -> Tensor:
    """(B,) in (0, 1), stratified, more of them in the middle and towards noise."""
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    normal = torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4))
    return torch.sigmoid(normal * 1.1 + SHIFT)


def canvas_ids(side: int) -> Tensor:
    """Positions of square latents in the final canvas: small ones count in larger steps.

    So a place in the picture has the same position in both stages, and the second need not learn
    geometry again.
    """
    step = CANVAS / side
    ids = image_ids(side, side)
    ids[:, 1:] = ids[:, 1:] * step + (step - 1) / 2
    return ids


def batch(data: dict[str, Tensor], seed: int, count: int) -> dict[str, Tensor]:
    """Inputs of the transformer and the velocity that it should give."""
    g = torch.Generator().manual_seed(seed)
    pick = torch.randint(len(data["latents"]), (count,), generator=g)
    which = torch.randint(cache.CAPTIONS, (count,), generator=g)
    context, pooled = data["context"][pick, which], data["pooled"][pick, which]
    empty = torch.rand(count, generator=g) < DROPPED
    context = torch.where(empty[:, None, None], data["no_context"], context)
    pooled = torch.where(empty[:, None], data["no_pooled"], pooled)
    x = data["latents"][pick].float()
    noise = torch.randn(x.shape, generator=g)
    t = timesteps(count, g)
    mixed = torch.lerp(x, noise, t[:, None, None, None])
    return {
        "pick": pick,
        "img": pack(mixed),
        "target": pack(noise - x),
        "timesteps": t,
        "txt": context.float(),
        "y": pooled.float(),
        "guidance": 1 + 4 * torch.rand(count, generator=g),
        "img_ids": canvas_ids(x.shape[-1]),
        "txt_ids": text_ids(context.shape[1]),
    }


def main() -> None:
    args = arguments(__doc__, side=128, count=16_000, steps=4000, batch=64, lr=2e-3, init="")
    data = cache.build(args.out, args.side, args.count, device=args.device)
    torch.manual_seed(0)
    model = new_transformer()
    if args.init == "pocket":  # the model that the repository ships, to train it further
        shipped = load_transformer(pocket_file("diffusion_models"), precision="fp32")
        model.load_state_dict(shipped.state_dict())
    elif args.init:
        model.load_state_dict(averaged(args.out, args.init))
    model.to(args.device)
    run = Run(f"transformer_{args.side}", args.out, model, optimizers(model, args.lr), args.steps)
    fast = torch.compile(model)
    for seed in run:
        inputs = batch(data, seed, args.batch // WORKERS)
        inputs = {name: value.to(args.device) for name, value in inputs.items()}
        inputs.pop("pick")
        target = inputs.pop("target")
        with torch.autocast(args.device, torch.bfloat16):
            velocity = fast(**inputs)
        run.update(F.mse_loss(velocity.float(), target))


if __name__ == "__main__":
    main()
