"""References that attend to themselves alone, while text and picture attend to them.

    q_ref sees k_ref;   q_text and q_image see k_text, k_image and k_ref

They are modulated as at time 0, so that nothing of them depends on the step: each block's keys and
values of theirs are computed in the first step, and may be kept for all others, which then run on
text and picture alone. Computed anew in every step they are the same bits, since they go through
the blocks by themselves. That is how FLUX.2 klein draws with its key-value cache; FLUX.1's Kontext
was trained with references that see everything.

Axis letters: B pictures, R reference tokens, C packed channels, D width, H heads, d width of one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from .layers import KeysValues, Modulation


class ModulationSource(Protocol):
    """What knows modulations before they are needed (``offload.modulations``)."""

    def of(self, layer: Any) -> Tensor:
        """What ``raw`` of a modulation layer would give at the step that is drawn now,
        (B, width)."""
        ...


class KeptKeys(Protocol):
    """Where keys and values of blocks wait from pass to pass, by the blocks' ids."""

    def __len__(self) -> int: ...

    def put(self, block: int, known: Any) -> None:
        """Keep keys and values, each (B, R, H, d)."""
        ...

    def get(self, block: int) -> Any:
        """What a block reads: keys and values, each (B, R, H, d)."""
        ...

    def clear(self) -> None: ...


class KeptOnDevice:
    """They stay where they were computed."""

    def __init__(self) -> None:
        self.known: dict[int, KeysValues] = {}

    def __len__(self) -> int:
        return len(self.known)

    def put(self, block: int, known: KeysValues) -> None:
        """Keep keys and values, each (B, R, H, d)."""
        self.known[block] = known

    def get(self, block: int) -> KeysValues:
        """Keys and values, each (B, R, H, d)."""
        return self.known[block]

    def clear(self) -> None:
        self.known.clear()


#: Whether they are kept, where they were computed; or what makes another place for them.
Keep = bool | Callable[[], KeptKeys]


class SideInput(NamedTuple):
    """What a block reads of them: tokens (B, R, D) with their modulations and positions, or keys
    and values that are known."""

    tokens: Tensor | None = None
    mods: Sequence[Modulation] = ()
    rotary: tuple[Tensor, Tensor] | None = None
    kept: KeysValues | None = None


class SideTokens:
    """One prompt's references on their way through the blocks, pass after pass.

    ``tokens`` (B, R, C) are standardised and packed, ``ids`` (R, 3) their positions. ``keep``
    says whether what the blocks made of them is kept from pass to pass, and where. ``source`` knows
    their modulations; None computes them live of ``vec``.
    """

    def __init__(self, tokens: Tensor, ids: Tensor, keep: Keep = True) -> None:
        self.tokens, self.ids, self.keep = tokens, ids, keep is not False
        self.source: ModulationSource | None = None
        self.vec: Tensor | None = None
        self.known: KeptKeys = KeptOnDevice() if isinstance(keep, bool) else keep()
        self.about: Hashable = None
        #: in a pass: tokens (B, R, D) as they are now, None where all is known
        self.hidden: Tensor | None = None
        self.rotary: tuple[Tensor, Tensor] | None = None

    @property
    def count(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def size_key(self) -> Hashable:
        """What a pass takes depends on this alone."""
        return self.tokens.shape, self.tokens.dtype, self.keep

    def alike(self) -> SideTokens:
        """Others like these, of which nothing is kept."""
        return SideTokens(self.tokens, self.ids, keep=False)

    def clear(self) -> None:
        """Forget what was kept, and the pass that was broken off."""
        self.known.clear()
        self.hidden = self.rotary = self.vec = None

    def depend_on(self, about: Hashable) -> None:
        """Forget what was kept if something else than ``about`` was in force then."""
        if about != self.about:
            self.clear()
            self.about = about

    def has_all(self, blocks: int) -> bool:
        """Whether a pass over so many blocks needs nothing computed; the part of a pass that was
        broken off is forgotten."""
        if len(self.known) < blocks or self.hidden is not None:
            self.clear()
        return len(self.known) == blocks

    def begin(
        self, hidden: Tensor, rotary: tuple[Tensor, Tensor], vec: Tensor | None = None
    ) -> None:
        """Start a pass with embedded tokens (B, R, D), their cosines and sines (1, R, 1, d), and
        the vector of time 0 (B, D) where there is no ``source``."""
        self.hidden, self.rotary, self.vec = hidden, rotary, vec

    def kept_of(self, block: nn.Module) -> KeysValues | None:
        """Keys and values (B, R, H, d) that a block made before; None in the pass that makes
        them."""
        return KeysValues(*self.known.get(id(block))) if self.hidden is None else None

    def after(self, block: nn.Module, outputs: Sequence[Tensor]) -> None:
        """Take what a block computed: tokens (B, R, D), keys and values (B, R, H, d); nothing where
        it read what is kept."""
        if outputs:
            self.hidden, keys, values = outputs
            if self.keep:
                self.known.put(id(block), KeysValues(keys, values))

    def end(self) -> None:
        """End a pass: what it alone needed is let go."""
        self.hidden = self.rotary = self.vec = None
