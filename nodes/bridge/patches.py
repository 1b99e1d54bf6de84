"""Patches that other packs put around the host's FLUX blocks, around ours.

The host keeps them in ``transformer_options``: ``patches`` (lists by name) and ``patches_replace``
(functions by block). What its own FLUX calls is called here with the same arguments; anything else
is an error that names the pack, since the picture would not be what the graph says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flux_core.models.layers import apply_rotary, attention
from flux_core.models.patches import (
    DOUBLE,
    EmbeddedInputs,
    ForwardState,
    RunBlock,
    Tokens,
)

from .. import host

POST_INPUT, ATTENTION, ATTENTION_OUTPUT = "post_input", "attn1_patch", "attn1_output_patch"
CALLED = (POST_INPUT, ATTENTION, ATTENTION_OUTPUT)
OVERRIDE = "optimized_attention_override"
#: Blocks that may be replaced, by the kind that the core gives them.
BLOCKS = {DOUBLE: "double_block", "single": "single_block"}
Rotary = tuple[Tensor, Tensor]


def origin(patch: object) -> str:
    """Where a patch comes from, for a message."""
    kind = patch if hasattr(patch, "__qualname__") else type(patch)
    return f"{getattr(kind, '__module__', '?')}.{getattr(kind, '__qualname__', kind)}"


def refuse_unknown(options: Mapping[str, Any], blocks: Mapping[str, int]) -> None:
    """Raise ``ValueError`` for patches that FLUX.1 has no place for.

    ``blocks``: how many there are of each kind.
    """
    for name, patches in options.get("patches", {}).items():
        if name not in CALLED and patches:
            raise ValueError(
                f"the patch {name!r} of {origin(patches[0])} is not for FLUX.1, which calls "
                f"{', '.join(CALLED)}: take that node away from the model"
            )
    for name, replaced in options.get("patches_replace", {}).items():
        for place, patch in replaced.items():
            known = isinstance(place, tuple) and len(place) == 2 and place[0] in blocks
            if name != "dit" or not known or not 0 <= place[1] < blocks[place[0]]:
                raise ValueError(
                    f"{origin(patch)} replaces {name} {place}, which FLUX.1 does not have: "
                    "take that node away from the model"
                )


def has_patches(options: Mapping[str, Any]) -> bool:
    """Whether other code takes part in a forward pass."""
    patches = options.get("patches", {}).values()
    replaced = options.get("patches_replace", {}).values()
    return any(patches) or any(replaced) or OVERRIDE in options


def to_host_rotary(rotary: Rotary) -> Tensor:
    """Our cosines and sines, each (B or 1, T, 1, d), as the host's rotations (B or 1, 1, T, d/2,
    2, 2)."""
    cos, sin = (part[..., 0, :].unflatten(-1, (-1, 2)) for part in rotary)  # (B, T, d/2, 2)
    c, s = cos[..., 0], sin[..., 1]
    return torch.stack([c, -s, s, c], dim=-1).unflatten(-1, (2, 2))[:, None]


def from_host_rotary(pe: Tensor) -> Rotary:
    """The inverse of ``to_host_rotary``: (B or 1, 1, T, d/2, 2, 2) to two of (B or 1, T, 1, d)."""
    c, s = pe[:, 0, ..., 0, 0], pe[:, 0, ..., 1, 0]  # (B, T, d/2)
    cos = c.repeat_interleave(2, dim=-1)
    sin = torch.stack([-s, s], dim=-1).flatten(-2)
    return cos[:, :, None], sin[:, :, None]


class HostPatches:
    """What a ``transformer_options`` asks for, as the core's ``BlockPatches``.

    With it the residuals of a host's ControlNet, which may have one for each block, or none.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        control: Mapping[str, Sequence[Tensor | None]] | None,
        blocks: Mapping[str, int],
    ) -> None:
        self.options = dict(options)
        self.control = control or {}
        self.patches: Mapping[str, Sequence[Callable[..., Any]]] = options.get("patches", {})
        self.replaced: Mapping[Any, Callable[..., Any]] = options.get("patches_replace", {}).get(
            "dit", {}
        )
        self.blocks = blocks
        self.rotary: Rotary | None = None
        self.host_rotary: Tensor | None = None

    def pe(self, rotary: Rotary) -> Tensor:
        """The host's form of rotations; made once a pass."""
        if self.rotary is not rotary or self.host_rotary is None:
            self.rotary, self.host_rotary = rotary, to_host_rotary(rotary)
        return self.host_rotary

    def ours(self, pe: Tensor) -> Rotary:
        """Our form of rotations that other code has had in hand."""
        if self.rotary is not None and pe is self.host_rotary:
            return self.rotary
        return from_host_rotary(pe)

    def embedded(self, inputs: EmbeddedInputs) -> EmbeddedInputs:
        """What the blocks begin with after all ``post_input`` patches."""
        for patch in self.patches.get(POST_INPUT, ()):
            given: dict[str, Any] = inputs._asdict() | {"transformer_options": self.options}
            for name in ("img_ids", "txt_ids"):  # the host's have a row a picture
                if given[name].ndim == 2:
                    given[name] = given[name].expand(len(inputs.img), -1, -1)
            out = patch(given)
            inputs = EmbeddedInputs(*(out[name] for name in EmbeddedInputs._fields))
        return inputs

    def block(
        self, kind: str, index: int, tokens: Tokens, state: ForwardState, run: RunBlock
    ) -> Tokens:
        """A block, replaced where somebody asked for it, and the ControlNet's residual after it."""
        name = BLOCKS[kind]
        options = self.options
        options |= {
            "block_index": index,
            "block_type": kind,
            "total_blocks": self.blocks[name],
        }
        if kind != DOUBLE:
            options["img_slice"] = [state.text_tokens, tokens[0].shape[1]]
        state = self.with_attention(state, options)
        patch = self.replaced.get((name, index))
        names = ("img", "txt") if kind == DOUBLE else ("img",)
        if patch is None:
            tokens = run(tokens, state)
        else:

            def original(args: Mapping[str, Any]) -> dict[str, Tensor]:
                changed = replace(
                    state,
                    vec=args["vec"],
                    rotary=self.ours(args["pe"]),
                    mask=args.get("attn_mask"),
                )
                changed = self.with_attention(changed, args.get("transformer_options") or options)
                out = run(tuple(args[n] for n in names), changed)
                return dict(zip(names, out, strict=True))

            args = dict(zip(names, tokens, strict=True))
            more = {"vec": state.vec, "pe": self.pe(state.rotary), "attn_mask": state.mask}
            out = patch(
                args | more | {"transformer_options": options}, {"original_block": original}
            )
            tokens = tuple(out[n] for n in names)
        return self.with_control(kind, index, tokens, state)

    def with_control(self, kind: str, index: int, tokens: Tokens, state: ForwardState) -> Tokens:
        """Tokens with a ControlNet's residual (B, L, D) on those of the picture."""
        residuals = self.control.get("input" if kind == DOUBLE else "output") or ()
        added = residuals[index] if index < len(residuals) else None
        if added is None:
            return tokens
        start = 0 if kind == DOUBLE else state.text_tokens
        first = tokens[0].clone()
        first[:, start : start + added.shape[1]] += added
        return (first, *tokens[1:])

    def with_attention(self, state: ForwardState, options: Mapping[str, Any]) -> ForwardState:
        """A state whose attention calls what ``options`` ask for, if they ask for anything."""
        patches = options.get("patches", {})
        if not (patches.get(ATTENTION) or patches.get(ATTENTION_OUTPUT) or OVERRIDE in options):
            return state
        return replace(state, attend=self.attention_of(state, dict(options)))

    def attention_of(self, state: ForwardState, options: dict[str, Any]) -> Callable[..., Tensor]:
        """Attention with patches before and behind it, and by another's function."""
        patches = options.get("patches", {})

        def attend(
            q: Tensor, k: Tensor, v: Tensor, rotary: Rotary, mask: Tensor | None = None
        ) -> Tensor:
            extra = options | {"img_slice": [state.text_tokens, q.shape[1]]}
            pe = self.pe(rotary)
            heads = {"q": q, "k": k, "v": v}
            heads = {name: x.transpose(1, 2) for name, x in heads.items()}  # the host's axes
            for patch in patches.get(ATTENTION, ()):
                out = patch(*heads.values(), pe=pe, attn_mask=mask, extra_options=extra)
                heads = {name: out.get(name, x) for name, x in heads.items()}
                pe, mask = out.get("pe", pe), out.get("attn_mask", mask)
            q, k, v = (x.transpose(1, 2) for x in heads.values())
            out = overridden(q, k, v, self.ours(pe), mask, options)
            for patch in patches.get(ATTENTION_OUTPUT, ()):
                out = patch(out, extra)
            return out

        return attend


def overridden(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rotary: Rotary,
    mask: Tensor | None,
    options: Mapping[str, Any],
) -> Tensor:
    """Attention over (B, T, H, d), by the host's function where a pack has put its own into it;
    returns (B, T, H * d)."""
    module = host.comfy("comfy.ldm.modules.attention") if OVERRIDE in options else None
    if module is None:
        return attention(q, k, v, rotary, mask)
    q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return module.optimized_attention(
        q, k, v, q.shape[1], mask=mask, skip_reshape=True, transformer_options=options
    )
