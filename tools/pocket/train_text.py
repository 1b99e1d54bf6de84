"""Train the pocket text encoders to find in a caption what it says, one answer an attribute.

T5 is read by one learned query an attribute, so that every token's vector must know what it belongs
to; CLIP is read by a linear layer from its pooled vector. The readers are thrown away.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tools.pocket import tokenizers
from tools.pocket.captions import ATTRIBUTES, describe
from tools.pocket.common import WORKERS, Run, arguments
from tools.pocket.scenes import random_scene

T5_WIDTH, CLIP_WIDTH = 128, 192


def new_t5(vocab: int) -> T5EncoderModel:
    """Random weights, but every head begins by looking near by, backwards or forwards.

    Without that the model needs thousands of steps to find out which colour belongs to what.
    """
    model = T5EncoderModel(
        T5Config(
            vocab_size=vocab,
            d_model=T5_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    )
    attention = model.encoder.block[0].layer[0].SelfAttention
    bucket = torch.arange(16.0)
    with torch.no_grad():
        for head, (slope, forwards) in enumerate(((1.0, 0), (1.0, 1), (0.3, 0), (0.3, 1))):
            bias = attention.relative_attention_bias.weight[:, head].view(2, 16)
            bias[forwards] = -slope * bucket
            bias[1 - forwards] = -5.0
    return model


def new_clip(vocab: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab,
            hidden_size=CLIP_WIDTH,
            intermediate_size=4 * CLIP_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=CLIP_WIDTH // 64,
            max_position_embeddings=tokenizers.CLIP_LENGTH,
            bos_token_id=vocab - 2,
            eos_token_id=vocab - 1,
            pad_token_id=vocab - 1,
        )
    )


class Readers(nn.Module):
    """Both encoders and the heads that question them."""

    def __init__(self, t5: T5EncoderModel, clip: CLIPTextModel) -> None:
        super().__init__()
        self.t5, self.clip = t5, clip
        self.queries = nn.Parameter(torch.randn(len(ATTRIBUTES), T5_WIDTH) * 0.02)
        self.attention = nn.MultiheadAttention(T5_WIDTH, 2, batch_first=True)
        sizes = [len(answers) for answers in ATTRIBUTES.values()]
        self.t5_heads = nn.ModuleList(nn.Linear(T5_WIDTH, n) for n in sizes)
        self.clip_heads = nn.ModuleList(nn.Linear(CLIP_WIDTH, n) for n in sizes)

    def ask_t5(self, ids: Tensor) -> list[Tensor]:
        """Logits by attribute, each (B, answers), read from T5's context."""
        context = self.t5(input_ids=ids).last_hidden_state
        queries = self.queries.expand(context.shape[0], -1, -1)
        read = self.attention(queries, context, context, need_weights=False)[0]
        return [head(read[:, i]) for i, head in enumerate(self.t5_heads)]

    def ask_clip(self, ids: Tensor) -> list[Tensor]:
        """Logits by attribute, each (B, answers), read from CLIP's pooled vector."""
        pooled = self.clip(input_ids=ids).pooler_output
        return [head(pooled) for head in self.clip_heads]


def batch(seed: int, count: int, held_out: bool = False) -> tuple[list[str], Tensor]:
    """Captions and the numbers of their answers (count, attributes)."""
    rng = random.Random(f"text {seed}")
    captions = [describe(random_scene(rng, held_out=held_out), rng) for _ in range(count)]
    answers = [[ATTRIBUTES[k].index(v) for k, v in c.answers.items()] for c in captions]
    return [c.text for c in captions], torch.tensor(answers)


def encode(tokenizer, texts: list[str], length: int) -> Tensor:
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids


def losses(logits: list[Tensor], answers: Tensor) -> Tensor:
    return sum(F.cross_entropy(x, answers[:, i]) for i, x in enumerate(logits)) / len(logits)


def load_tokenizers(out: Path) -> tuple[T5Tokenizer, CLIPTokenizer]:
    folder = out / "tokenizers"
    return (
        T5Tokenizer.from_pretrained(folder / "tokenizer_2"),
        CLIPTokenizer.from_pretrained(folder / "tokenizer"),
    )


def new_readers(out: Path) -> Readers:
    t5, clip = load_tokenizers(out)
    return Readers(new_t5(len(t5)), new_clip(len(clip)))


def train(run: Run, args: argparse.Namespace, part: str) -> None:
    """All steps of one encoder, t5 or clip."""
    readers = run.module
    t5_tokenizer, clip_tokenizer = load_tokenizers(args.out)
    for seed in run:
        texts, answers = batch(seed, args.batch // WORKERS)
        if part == "t5":
            logits = readers.ask_t5(encode(t5_tokenizer, texts, tokenizers.T5_LENGTH))
        else:
            logits = readers.ask_clip(encode(clip_tokenizer, texts, 36))
        run.update(losses(logits, answers))


def main() -> None:
    args = arguments(__doc__, steps=1600, batch=64, lr=2e-3)
    if not (args.out / "tokenizers" / "tokenizer" / "vocab.json").exists():
        tokenizers.main(args.out / "tokenizers")
    for part in ("clip", "t5"):
        torch.manual_seed(0)
        readers = new_readers(args.out).to(args.device)
        optimizer = torch.optim.AdamW(readers.parameters(), lr=args.lr, betas=(0.9, 0.98))
        train(Run(f"text_{part}", args.out, readers, [optimizer], args.steps), args, part)


if __name__ == "__main__":
    main()
