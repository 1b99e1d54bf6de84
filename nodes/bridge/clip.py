"""The value on a CLIP wire: our text encoders under the host's CLIP.

The host keeps what is its own: tokens with weights, embeddings in a prompt, the layer to stop at,
hooks. Where it would run an encoder it calls one of ours, which comes to the device for that call,
quantized and streamed as FluxTextEncode has it.

Axis letters: N tokens, D width, P width of CLIP-L's pooled vector.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from flux_core.lora import lora_uses
from flux_core.lora.apply import Branches, Numbered, attached, branches_for
from flux_core.models.text_encoders import TextEncoders
from flux_core.offload import Work

from .. import accounts, host
from ..memory_manager import HostOffloadRunner
from ..wires import FluxTextEncoders
from .model import named_shapes
from .text_encoders import HostClipL, HostT5
from .weight_patches import Entry, entries_of, numbered_together

#: What the host pads T5's tokens to.
T5_TOKENS = 256
#: Where the names of each encoder's weights begin.
PREFIXES = {
    "clip_l": "clip_l.transformer.",
    "t5": "t5xxl.transformer.",
    "language_model": "language_model.transformer.model.",
}
#: The host's names of language models by their widths.
LANGUAGE_NAMES = {2560: "qwen3_4b", 4096: "qwen3_8b", 5120: "mistral3_24b"}


def prefix_of(encoder: nn.Module) -> str:
    """Where the names of an encoder's weights begin."""
    part = str(encoder.part)
    width = encoder.config.width if part == "language_model" else 0  # type: ignore[union-attr]
    return PREFIXES[part].replace(part, LANGUAGE_NAMES.get(width, part), 1)  # type: ignore[arg-type]


class HostClipModel(nn.Module):
    """What the host's CLIP calls its ``cond_stage_model``: CLIP-L and T5 as FLUX reads them, or T5
    alone as Chroma does.

    ``patcher`` refers to that of the wire that encodes now: LoRAs differ from wire to wire. It
    holds this model, so it is not held here.
    """

    texts: FluxTextEncoders

    def __init__(self, texts: FluxTextEncoders) -> None:
        super().__init__()
        module = host.comfy("comfy.sd1_clip")
        assert module is not None
        self.__dict__["texts"] = texts
        self.patcher: Callable[[], Any] = lambda: None
        encoders = cast(TextEncoders, texts.module)
        tokenizers = encoders.tokenizers
        held_weakly = weakref.ref(self)  # or a CLIP that is dropped would keep its weights

        def hold(encoder: nn.Module, function: Callable[[torch.device], Any], work: Work) -> Any:
            model = held_weakly()
            assert model is not None, "a CLIP wire holds its model"
            return model.hold(encoder, function, work)

        self.clip_l: Any = None
        clip_l, tokenizer = encoders.clip_l, tokenizers.clip_l
        if clip_l is not None and tokenizer is not None:
            self.clip_l = module.SDClipModel(
                textmodel_json_config={},
                model_class=lambda *_: HostClipL(hold, clip_l),
                special_tokens=special_tokens(tokenizer, start=True),
                return_projected_pooled=False,
                max_length=clip_l.length,
            )
        self.t5xxl = t5_model_class(encoders.masks_padding)(
            textmodel_json_config={},
            model_class=lambda *_: HostT5(hold, encoders.t5),
            special_tokens=special_tokens(tokenizers.t5),
        )
        self.dtypes = {model.transformer.dtype for model in self.models}

    @property
    def models(self) -> list[Any]:
        """The host's models around the encoders that there are."""
        return [self.t5xxl] if self.clip_l is None else [self.clip_l, self.t5xxl]

    def set_clip_options(self, options: dict[str, Any]) -> None:
        for model in self.models:
            model.set_clip_options(options)

    def reset_clip_options(self) -> None:
        for model in self.models:
            model.reset_clip_options()

    def encode_token_weights(self, pairs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """T5's context (1, N, D) and CLIP-L's pooled vector (1, P), if any, of weighted tokens."""
        context, _ = self.t5xxl.encode_token_weights(pairs["t5xxl"])
        if self.clip_l is None:
            return context, None
        _, pooled = self.clip_l.encode_token_weights(pairs["l"])
        return context, pooled

    def state_dict(  # type: ignore[override]
        self, *args: Any, destination: dict[str, Any] | None = None, prefix: str = "", **_: Any
    ) -> dict[str, Any]:
        """The names that LoRAs are matched with, on meta."""
        result = {} if destination is None else destination
        for encoder in self.texts.module.modules_used:
            begin = prefix_of(encoder)
            for name, tensor in named_shapes(encoder):
                result[prefix + begin + name] = tensor
        return result

    def load_sd(self, sd: object) -> None:
        raise ValueError("FluxFit's text encoders are opened by its loader")

    def hold(self, encoder: nn.Module, function: Callable[[torch.device], Any], work: Work) -> Any:
        """Call a function of the device with an encoder there, and its LoRAs beside it."""
        _ = self.texts.encoders  # which are computed as this wire wants it from here on
        runner = HostOffloadRunner(self.texts.policy, host.device())
        with with_loras(encoder, self.texts, self.patcher()):
            result = runner.run("text encoders", [encoder], lambda _: function(runner.device), work)
        accounts.account(runner.report)
        return result


@cache
def t5_model_class(masks_padding: bool) -> type:
    """The host's model around T5; where padding is masked, what weights move away from is padding
    alone, as its own for such families has it."""
    module = host.comfy("comfy.sd1_clip")
    assert module is not None
    if not masks_padding:
        return module.SDClipModel

    class PaddedWithoutEnd(module.SDClipModel):
        def gen_empty_tokens(self, special_tokens: dict[str, int], *args: Any, **kwargs: Any):
            marks = {name: mark for name, mark in special_tokens.items() if name != "end"}
            return module.gen_empty_tokens(marks, *args, **kwargs)

    return PaddedWithoutEnd


def special_tokens(tokenizer: PreTrainedTokenizerBase, start: bool = False) -> dict[str, int]:
    """The numbers of a tokenizer's marks, by the host's names."""
    marks: dict[str, Any] = {"end": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    if start:
        marks["start"] = tokenizer.bos_token_id
    return {name: int(number) for name, number in marks.items() if number is not None}


@contextmanager
def with_loras(encoder: nn.Module, texts: FluxTextEncoders, patcher: Any) -> Iterator[None]:
    """The wire's LoRAs beside an encoder's layers inside the block of this ``with``."""
    branches = branches_of(encoder, texts, patcher)
    if branches is None:
        yield
        return
    with attached(encoder, branches):
        yield


def branches_of(encoder: nn.Module, texts: FluxTextEncoders, patcher: Any) -> Branches | None:
    """Branches for our LoRAs, the host's patches and its hooks; None where there is nothing."""
    entries, strengths = patches_of(encoder, patcher)
    uses = lora_uses(texts.loras)
    loras = [use.lora for use in uses]
    if not loras and not entries:
        return None

    def numbered() -> Numbered:
        return numbered_together(encoder, loras, entries)

    sources = [*loras, *(entry.source for entry in entries)]
    branches = branches_for(encoder, sources, numbered)
    of_all = [*(use.strength for use in uses), *strengths]
    branches.set_strengths(of_all, [use.blocks for use in uses])
    return branches


def patches_of(encoder: nn.Module, patcher: Any) -> tuple[list[Entry], list[float]]:
    """The host's patches of an encoder and of the hooks that are on now, with their strengths."""
    if patcher is None:
        return [], []
    prefix = prefix_of(encoder)
    entries = entries_of(patcher.patches, prefix)
    strengths = [entry.strength for entry in entries]
    hooks = patcher.current_hooks or patcher.forced_hooks
    for hook in hooks.hooks if hooks is not None else ():
        of_hook = entries_of(patcher.hook_patches.get(hook.hook_ref, {}), prefix)
        entries += of_hook
        strengths += [float(hook.strength) * entry.strength for entry in of_hook]
    return entries, strengths


@cache
def patcher_class() -> type:
    """The patcher of a CLIP wire: it keeps LoRAs and hooks, and moves nothing by itself."""
    module = host.comfy("comfy.model_patcher")
    assert module is not None

    class TextPatcher(module.ModelPatcher):
        def model_size(self) -> int:
            return 1

        def loaded_size(self) -> int:
            return 1

        def partially_load(self, *args: Any, **kwargs: Any) -> int:
            return 0

        def partially_unload(self, *args: Any, **kwargs: Any) -> int:
            return 0

        def current_loaded_device(self) -> Any:
            return self.load_device

        def detach(self, unpatch_all: bool = True) -> Any:
            return self.model

        def patch_model(self, *args: Any, **kwargs: Any) -> Any:
            return self.model

        def unpatch_model(self, *args: Any, **kwargs: Any) -> None:
            pass

        def patch_hooks(self, hooks: Any) -> None:
            self.current_hooks = hooks

        def unpatch_hooks(self, whitelist_keys_set: Any = None) -> None:
            self.current_hooks = None

        def get_key_patches(self, *args: Any, **kwargs: Any) -> Any:
            raise ValueError(
                "text encoders cannot be merged with those of FluxFit, whose weights are quantized"
            )

    return TextPatcher


@cache
def clip_class() -> type:
    """Our CLIP, made of the host's own once it is there."""
    module = host.comfy("comfy.sd")
    assert module is not None

    class FluxFitCLIP(module.CLIP):
        def clone(self, *args: Any, **kwargs: Any) -> Any:
            new = super().clone(*args, **kwargs)
            new.__class__ = type(self)
            return new

        def load_model(self, *args: Any, **kwargs: Any) -> Any:
            self.cond_stage_model.patcher = weakref.ref(self.patcher)
            return super().load_model(*args, **kwargs)

        def get_sd(self) -> Any:
            raise ValueError("FluxFit's text encoders are saved by FluxFitSaveQuantized")

    return FluxFitCLIP


class FluxTokenizer:
    """Weighted tokens for the encoders, by the host's own reading of a prompt."""

    def __init__(self, encoders: TextEncoders) -> None:
        module = host.comfy("comfy.sd1_clip")
        folders = host.comfy("folder_paths")
        assert module is not None and folders is not None
        tokenizers = encoders.tokenizers
        directory = folders.get_folder_paths("embeddings")
        self.clip_l = None
        if encoders.clip_l is not None and tokenizers.clip_l is not None:
            self.clip_l = module.SDTokenizer(
                tokenizer_class=opened(tokenizers.clip_l),
                embedding_directory=directory,
                embedding_size=encoders.clip_l.table.embedding_dim,
                max_length=encoders.clip_l.length,
            )
        self.t5xxl = module.SDTokenizer(
            tokenizer_class=opened(tokenizers.t5),
            embedding_directory=directory,
            embedding_size=encoders.t5.table.embedding_dim,
            embedding_key="t5xxl",
            pad_with_end=False,
            has_start_token=False,
            pad_to_max_length=False,
            max_length=99_999_999,
            min_length=1 if encoders.masks_padding else min(T5_TOKENS, tokenizers.t5_length),
        )

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Tokens with their weights, by encoder."""
        pairs = {} if self.clip_l is None else {"l": self.clip_l}
        return {
            name: tokenizer.tokenize_with_weights(text, return_word_ids, **kwargs)
            for name, tokenizer in (pairs | {"t5xxl": self.t5xxl}).items()
        }

    def untokenize(self, pairs: Any) -> Any:
        return (self.clip_l or self.t5xxl).untokenize(pairs)

    def state_dict(self) -> dict[str, Any]:
        return {}


def opened(tokenizer: PreTrainedTokenizerBase) -> type:
    """A class whose ``from_pretrained`` gives a tokenizer that is open already."""
    return type("Opened", (), {"from_pretrained": staticmethod(lambda *args, **kwargs: tokenizer)})
