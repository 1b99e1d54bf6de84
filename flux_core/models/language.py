"""The language models that FLUX.2 reads prompts with: states of three layers beside each other.

    context = [state 9, state 18, state 27] of Qwen3 (klein), of 10, 20, 30 of Mistral Small (dev)

State k is what layer k reads. Layers behind the last of them, the output and what looks at
pictures are not opened. The layers are ``transformers``' own; which model it is, and its sizes, are
read from shapes. Axis letters: B prompts, N tokens, D width of the language model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..quant.products import use_fast_linears
from .config import Shapes, count_whole

#: Width of one attention head.
HEAD = 128
#: Tokens of a prompt, padding and all.
LANGUAGE_LENGTH = 512
#: What prompts for dev stand behind.
SYSTEM_MESSAGE = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing "
    "on object relationships, object\nattribution and actions without speculation."
)
#: How ``transformers``' layers attend.
ATTENTION: dict[str, Any] = {"attn_implementation": "sdpa"}
FIRST_QUERY = "layers.0.self_attn.q_proj.weight"
QUERY_NORM = "layers.0.self_attn.q_norm.weight"
TABLE = "embed_tokens.weight"


def qwen_layers(**sizes: Any) -> list[nn.Module]:
    """Layers of Qwen3 of some sizes."""
    from transformers import Qwen3Config

    from .language_layers import QwenLayer

    config = Qwen3Config(**sizes | ATTENTION)
    return [QwenLayer(config, i) for i in range(sizes["num_hidden_layers"])]


def mistral_layers(**sizes: Any) -> list[nn.Module]:
    """Layers of Mistral of some sizes."""
    from transformers import MistralConfig

    from .language_layers import MistralLayer

    config = MistralConfig(**sizes | ATTENTION, sliding_window=None)
    return [MistralLayer(config, i) for i in range(sizes["num_hidden_layers"])]


#: Tokens of their own in a template, as both models write them.
MARKS = re.compile(r"<\|\w+\|>|\[/?[A-Z_]+\]")


@dataclass(frozen=True)
class LanguageKind:
    """One of the language models.

    Args:
        name: as ``Family.encoders`` has it; ``title`` is for people.
        states: which are read.
        theta, eps: of its rotary positions, and of its norms.
        new_layers: its layers for ``transformers``' names of sizes.
        template: what a prompt stands in.
        pad, start: tokens of padding, in front where ``pad_left``, and of the beginning.
    """

    name: str
    title: str
    states: tuple[int, ...]
    theta: float
    eps: float
    new_layers: Callable[..., list[nn.Module]]
    template: str
    pad: str
    start: str = ""
    pad_left: bool = False

    @property
    def marks(self) -> list[str]:
        """The tokens that its tokenizer has at least: of padding, of the beginning, and those that
        stand around a prompt."""
        around = MARKS.findall(self.template)
        return [mark for mark in dict.fromkeys((self.pad, self.start, *around)) if mark]


QWEN3 = LanguageKind(
    "qwen3",
    "Qwen3",
    (9, 18, 27),
    1e6,
    1e-6,
    qwen_layers,
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "<|endoftext|>",
)
MISTRAL = LanguageKind(
    "mistral",
    "Mistral Small",
    (10, 20, 30),
    1e9,
    1e-5,
    mistral_layers,
    f"[SYSTEM_PROMPT]{SYSTEM_MESSAGE}[/SYSTEM_PROMPT][INST]{{}}[/INST]",
    "<pad>",
    "<s>",
    pad_left=True,
)


def kind_of(shapes: Shapes) -> LanguageKind | None:
    """Which language model native shapes are of; None for others.

    Qwen3 alone normalises its queries; Mistral Small has fewer of them than it is wide.
    """
    if FIRST_QUERY not in shapes or TABLE not in shapes or len(shapes[FIRST_QUERY]) != 2:
        return None
    strange = ("layers.0.self_attn.q_proj.bias", "layers.0.pre_feedforward_layernorm.weight")
    if any(name in shapes for name in strange):
        return None
    if QUERY_NORM in shapes:
        return QWEN3
    rows, width = shapes[FIRST_QUERY]
    return MISTRAL if rows < width else None


@dataclass(frozen=True)
class LanguageConfig:
    """Sizes of a language model, as far as it is read."""

    kind: LanguageKind
    vocabulary: int
    width: int
    inner: int
    heads: int
    key_heads: int

    @property
    def sizes(self) -> str:
        """What it is, for people."""
        states = ", ".join(map(str, self.kind.states))
        return f"{self.kind.title}, {self.width} wide, states {states}"

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> LanguageConfig:
        """Read the sizes from native shapes.

        Raises ``KeyError`` on a missing key, ``ValueError`` for another model or too few layers.
        """
        kind = kind_of(shapes)
        if kind is None:
            raise ValueError("is a language model, and neither Qwen3 nor Mistral Small")
        count, wanted = count_whole(shapes, "layers.", "self_attn.q_proj.weight"), kind.states[-1]
        if count < wanted:
            raise ValueError(f"has {count} layers, FLUX.2 reads {wanted} of {kind.title}")
        vocabulary, width = shapes[TABLE]
        return cls(
            kind,
            vocabulary,
            width,
            shapes["layers.0.mlp.gate_proj.weight"][0],
            shapes[FIRST_QUERY][0] // HEAD,
            shapes["layers.0.self_attn.k_proj.weight"][0] // HEAD,
        )


class LanguageEncoder(nn.Module):
    """The embedding of a language model and its layers, as far as FLUX.2 reads them."""

    part = "language_model"
    #: What files have beside it, by native names.
    unread = re.compile(
        r"norm\.weight|layers\.\d+\..*|lm_head\..*|.*rotary_emb\.inv_freq"
        r"|tekken_model|tokenizer_json"
    )

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(
            config.kind.new_layers(
                hidden_size=config.width,
                intermediate_size=config.inner,
                num_attention_heads=config.heads,
                num_key_value_heads=config.key_heads,
                num_hidden_layers=config.kind.states[-1],
                head_dim=HEAD,
                rms_norm_eps=config.kind.eps,
            )
        )
        use_fast_linears(self)
        self.vocabulary = config.vocabulary

    def offload_blocks(self) -> list[nn.Module]:
        """The layers in the order in which they run."""
        return list(self.layers)

    def forward(self, ids: Tensor, there: Tensor | None = None) -> Tensor:
        """Token numbers (B, N) to context (B, N, 3 D).

        ``there`` (B, N): True for tokens that others may look at, False for padding.
        """
        x = self.embed_tokens(ids)
        count = ids.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool, device=ids.device).tril()[None, None]
        if there is not None:
            mask = mask & there[:, None, None]
        positions = rotary_halves(count, self.config.kind.theta, x)
        states = []
        for number, layer in enumerate(self.layers, 1):
            out = layer(x, attention_mask=mask, position_embeddings=positions)
            x = out[0] if isinstance(out, tuple) else out  # before transformers 5
            if number in self.config.kind.states:
                states.append(x)
        return torch.cat(states, dim=-1)


def rotary_halves(count: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of so many positions, each (1, N, d), of the dtype of ``like`` (..., D):
    both halves of a head have the same angles."""
    steps = torch.arange(0, HEAD, 2, dtype=torch.float32, device=like.device) / HEAD
    places = torch.arange(count, dtype=torch.float32, device=like.device)
    angles = places[:, None] * (1.0 / theta**steps)
    angles = torch.cat([angles, angles], dim=-1)[None]
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)
