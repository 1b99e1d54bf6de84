"""Train the pocket upscaler: a ControlNet that makes blurred pictures sharp, the base frozen.

It begins as a copy of the base's embedders and double blocks with outputs of zero, as public
ControlNets do. Its condition is the latents of the blurred, enlarged picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flux_core.models.config import ControlNetConfig
from flux_core.models.controlnet import FluxControlNet
from flux_core.sampling.latents import pack
from tools.pocket import cache, train_transformer
from tools.pocket.common import WORKERS, Run, arguments, averaged

BASE = train_transformer.CONFIG
CONFIG = ControlNetConfig(
    vec_in_dim=BASE.vec_in_dim,
    context_in_dim=BASE.context_in_dim,
    hidden_size=BASE.hidden_size,
    depth=BASE.depth,
)


def new_controlnet(base: nn.Module) -> FluxControlNet:
    """A copy of the base's first blocks; what joins it to the base begins at zero."""
    net = FluxControlNet(CONFIG)
    own = net.state_dict()
    net.load_state_dict({k: v for k, v in base.state_dict().items() if k in own}, strict=False)
    for linear in (net.pos_embed_input, *net.controlnet_blocks):
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
    return net


class Controlled(nn.Module):
    """Base and net together, so that one call gives the velocity."""

    def __init__(self, base: nn.Module, net: FluxControlNet) -> None:
        super().__init__()
        self.base, self.net = base, net

    def forward(self, cond: Tensor, **inputs: Tensor) -> Tensor:
        return self.base(**inputs, control=self.net(cond=cond, **inputs))


def main() -> None:
    args = arguments(
        __doc__, side=256, count=10_000, blurred=2000, steps=900, batch=16, lr=1e-3, base=""
    )
    data = cache.build(args.out, args.side, args.count, device=args.device)
    blurred = cache.build(args.out, args.side, args.blurred, blurred=True)["latents"]
    data |= {name: data[name][: args.blurred] for name in ("latents", "context", "pooled")}
    base = train_transformer.new_transformer()
    base.load_state_dict(averaged(args.out, args.base or f"transformer_{args.side}"))
    base.requires_grad_(False)
    net = new_controlnet(base)
    both = Controlled(base, net).to(args.device)
    optimizers = train_transformer.optimizers(net, args.lr)
    run = Run("controlnet", args.out, net, optimizers, args.steps)
    fast = torch.compile(both)
    for seed in run:
        inputs = train_transformer.batch(data, seed, args.batch // WORKERS)
        cond = pack(blurred[inputs.pop("pick")].float()).to(args.device)
        inputs = {name: value.to(args.device) for name, value in inputs.items()}
        target = inputs.pop("target")
        with torch.autocast(args.device, torch.bfloat16):
            velocity = fast(cond, **inputs)
        run.update(F.mse_loss(velocity.float(), target))


if __name__ == "__main__":
    main()
