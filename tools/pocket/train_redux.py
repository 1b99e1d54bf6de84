"""Train the pocket vision encoder and Redux: a picture to what T5 makes of a sentence about it.

    python -m tools.pocket.train_redux

T5 and the transformer are left as they are. Colours, background and place come across; the shape
hardly does, since the transformer takes it from CLIP's vector as much as from T5, and that knows
the words alone. Training on through the frozen transformer (280 steps of 16) did not mend that, and
words beside the picture then counted less.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flux_core import TextEncoders
from flux_core.models.redux import ReduxConfig, ReduxModel
from flux_core.models.vision import VisionEncoder, vision_pixels
from flux_core.models.vision_config import VisionConfig
from tools.pocket import cache
from tools.pocket.captions import ATTRIBUTES, THING_ATTRIBUTES, UNSAID, article
from tools.pocket.common import WORKERS, Run, arguments, averaged
from tools.pocket.scenes import Scene, Thing, draw, random_scene
from tools.pocket.train_text import T5_WIDTH, losses

VISION = VisionConfig(hidden_size=128, mlp_hidden=512, depth=4, image_size=96, patch_size=16)
REDUX = ReduxConfig(embed_dim=128, hidden_size=512, context_dim=T5_WIDTH)
#: Weight of what is read from the pooled vector, beside the tokens' error.
ANSWERS = 0.3


def place_words(place: str) -> str:
    """Where a thing is, in words."""
    if place == "center":
        return "in the center"
    if " " in place:
        return f"in the {place} corner"
    return f"{'on' if place in ('left', 'right') else 'at'} the {place}"


def ordered(scene: Scene) -> list[Thing]:
    """The things, since a picture does not say which is the first, as one reads."""
    return sorted(scene.things, key=lambda thing: (round(thing.y / 0.2), thing.x))


def sentence(scene: Scene) -> str:
    """What is in a picture, in the one form that is learned."""
    things = [
        article(f"{thing.size} {thing.colour} {thing.shape} {place_words(thing.place)}")
        for thing in ordered(scene)
    ]
    return f"{' and '.join(things)} on {article(scene.background)} background"


class PictureWords(nn.Module):
    """A vision encoder and Redux, trained together."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision, self.redux = VisionEncoder(VISION), ReduxModel(REDUX)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and "position" not in name and "probe" not in name:
                nn.init.xavier_uniform_(parameter.flatten(1) if parameter.ndim > 2 else parameter)
            elif parameter.ndim > 1:  # as large as what stands there: each token has its own word
                nn.init.normal_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        for layer in (self.redux.redux_up, self.redux.redux_down):
            nn.init.zeros_(layer.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, S, S) as context (B, N, C)."""
        return self.redux(self.vision(pixels).tokens)


def optimizers(module: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the vision encoder's layers, AdamW for everything else."""
    matrices, rest = [], []
    for name, parameter in module.named_parameters():
        (matrices if parameter.ndim == 2 and "encoder.layers." in name else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def pixels_of(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as the encoder reads them, (B, 3, S, S)."""
    return vision_pixels((pictures.movedim(1, -1) + 1) / 2, VISION)


class Reader(nn.Module):
    """Reads from the vision encoder's pooled vector what is in the picture; it is thrown away."""

    def __init__(self, words: PictureWords) -> None:
        super().__init__()
        self.words = words
        sizes = [len(answers) for answers in ATTRIBUTES.values()]
        self.heads = nn.ModuleList(nn.Linear(VISION.hidden_size, size) for size in sizes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Context (B, N, C) for normalised pixels, and logits by attribute, each (B, answers)."""
        seen = self.words.vision(pixels)
        return self.words.redux(seen.tokens), [head(seen.pooled) for head in self.heads]


def answers_of(scene: Scene) -> list[int]:
    """The numbers of what is true of a scene, by ``ATTRIBUTES``."""
    facts = dict.fromkeys(ATTRIBUTES, UNSAID) | {"background": scene.background}
    for i, thing in enumerate(ordered(scene)):
        facts |= {f"{name}{i}": getattr(thing, name) for name in THING_ATTRIBUTES}
    return [ATTRIBUTES[name].index(fact) for name, fact in facts.items()]


@torch.no_grad()
def lessons(encoders: TextEncoders, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (count, 3, S, S) uint8, T5's vectors of their sentences, and what is true."""
    shown, wanted, answers = [], [], []
    for start in range(0, count, 100):
        rng = random.Random(f"redux {start}")
        scenes = [random_scene(rng) for _ in range(100)]
        drawn = np.stack([draw(scene, VISION.image_size, rng) for scene in scenes])
        shown.append(torch.from_numpy(drawn).movedim(-1, 1))
        context = encoders.encode([sentence(scene) for scene in scenes]).context
        wanted.append(context[:, : VISION.tokens].bfloat16().cpu())
        answers += [answers_of(scene) for scene in scenes]
    return torch.cat(shown), torch.cat(wanted), torch.tensor(answers)


def distil(words: PictureWords, encoders: TextEncoders, args: argparse.Namespace) -> None:
    """Train tokens to be T5's of the sentence, and the pooled vector to know the scene."""
    shown, wanted, answers = lessons(encoders, args.count)
    reader = Reader(words).to(args.device)
    run = Run("redux", args.out, reader, optimizers(reader, args.lr), args.steps, decay=0.99)
    for seed in run:
        g = torch.Generator().manual_seed(seed)
        pick = torch.randint(len(shown), (args.batch // WORKERS,), generator=g)
        pixels = pixels_of(shown[pick].float() / 127.5 - 1)
        with torch.autocast(args.device, torch.bfloat16):
            tokens, logits = reader(pixels.to(args.device))
        error = F.mse_loss(tokens.float(), wanted[pick].float().to(args.device))
        run.update(error + ANSWERS * losses(logits, answers[pick].to(args.device)))


def load(words: PictureWords, out: Path, name: str) -> None:
    """Fill it with the averaged weights of a run."""
    inner = "words."
    state = averaged(out, name)
    words.load_state_dict(
        {k.removeprefix(inner): v for k, v in state.items() if k.startswith(inner)}
    )


def main() -> None:
    args = arguments(__doc__, steps=2600, batch=48, lr=2e-3, count=4000)
    encoders = cache.open_encoders()[0].to(args.device)
    distil(PictureWords().to(args.device), encoders, args)


if __name__ == "__main__":
    main()
