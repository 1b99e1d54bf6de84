"""What a prompt reads in each window of a picture that is drawn in tiles.

Everything that has a place is cut to the window: the picture beside the noise, the conditions of
ControlNets, attention masks. What has none is kept: text, references, image prompts.

Axis letters: B pictures, C latent channels, h and w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.family import Family
from ..models.geometry import FLUX1_TOKENS, TokenGeometry
from .conditioning import Conditioning, Control
from .differential import MaskBySteps
from .latents import image_ids
from .prepared import PreparedPrompt, cut_condition, own_mask, whole_condition
from .references import reference_tokens
from .regions import Area, Placed, weights
from .tiles import Tiling, Window, bias_in


@dataclass(frozen=True, eq=False)
class Tiles:
    """How a run is tiled: ``sigmas`` of its steps, and where they draw.

    ``mask`` (1 or B, 1, h, w) on the CPU, above 0 where to draw, None everywhere; ``by_steps`` is
    what it is at each step. ``between`` is called before each window is read.
    """

    tiling: Tiling
    sigmas: Sequence[float] = ()
    mask: Tensor | None = None
    by_steps: MaskBySteps | None = None
    between: Callable[[], None] | None = None

    def windows(
        self, height: int, width: int, sigma: float, geometry: TokenGeometry = FLUX1_TOKENS
    ) -> list[Window]:
        """The windows of ``height`` x ``width`` latents at a sigma."""
        step = self.sigmas.index(sigma) if sigma in self.sigmas else 0
        return self.tiling.windows(height, width, step, geometry)

    def drawn(self, sigma: float) -> Tensor | None:
        """Where a step at a sigma draws anything of any picture, (h, w); None is everywhere."""
        if self.mask is None:
            return None
        mask = self.mask.cpu()
        mask = mask if self.by_steps is None else self.by_steps(mask, torch.tensor(sigma))
        return (mask != 0).any(dim=0)[0]


class WindowReader:
    """Makes prompts ready for their windows in one run."""

    def __init__(
        self,
        tiles: Tiles,
        controls: Sequence[Control],
        shape: Sequence[int],
        family: Family,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """``dtype`` is that of the transformer's activations."""
        self.tiles, self.shape, self.device, self.dtype = tiles, tuple(shape), device, dtype
        self.vae, self.geometry = family.vae, family.tokens
        self.kinds = (device, dtype, family.tokens)
        self.controls = list(controls)
        # the whole conditions wait on the host: a card holds those of one window
        host = torch.device("cpu")
        self.conditions = [whole_condition(control, shape, self.vae, host) for control in controls]
        self.sources: dict[str, Conditioning] = {}
        self.counts: dict[str, Tensor] = {}
        self.ids: dict[tuple[int, int], Tensor] = {}
        self.reference_ids: dict[tuple[str, int, int], Tensor] = {}

    def splits(self, prompt: PreparedPrompt) -> bool:
        """Whether a prompt is read in more than one window."""
        return self.tiles.tiling.splits(prompt.height, prompt.width, self.geometry)

    def without_attention(self, entry: Placed) -> Placed:
        """An entry that will be split, without the mask over all tokens, which would be large."""
        area = entry.area or Area(self.shape[-2], self.shape[-1], 0, 0)
        size = (area.height, area.width)
        if entry.prompt.attention is None or not self.tiles.tiling.splits(*size, self.geometry):
            return entry
        return replace(entry, prompt=replace(entry.prompt, attention=None))

    def add(self, prompt: PreparedPrompt, entry: Placed) -> None:
        """Keep what a prompt that is split was made of, and where it counts."""
        if self.splits(prompt):
            self.sources[prompt.name] = entry.prompt
            self.counts[prompt.name] = (weights(entry, self.shape) != 0).any(dim=0)[0]
            references = entry.prompt.references
            if prompt.side is not None and references is not None:
                # all windows read what the first made of them, so that they stand in one place
                size = self.window_size(prompt)
                about = (references.latents, references.method, *size, 1, self.geometry)
                _, ids = reference_tokens(*about)
                prompt.side.ids = ids.to(self.device)

    def windows(self, prompt: PreparedPrompt, sigma: float) -> list[Window]:
        """The windows of a prompt at a sigma, but for those in which nothing of it is drawn."""
        counts, drawn = self.counts[prompt.name], self.tiles.drawn(sigma)
        if drawn is not None:
            counts = counts & (drawn if prompt.area is None else prompt.area.cut(drawn))
        windows = self.tiles.windows(prompt.height, prompt.width, sigma, self.geometry)
        return [window for window in windows if bool(window.area.cut(counts).any())]

    def window_size(self, prompt: PreparedPrompt) -> tuple[int, int]:
        """Sides of a prompt's largest window in latents."""
        return self.tiles.tiling.window_size(prompt.height, prompt.width, self.geometry)

    def largest(self, prompt: PreparedPrompt) -> PreparedPrompt:
        """A prompt as it is read in a window of the full size."""
        area = Area(*self.window_size(prompt), 0, 0)
        return self.prompt(prompt, Window(area, torch.ones(())))

    def prompt(self, prompt: PreparedPrompt, window: Window) -> PreparedPrompt:
        """A prompt as it is read in one of its windows."""
        area, whole = window.area, prompt.area or Area(self.shape[-2], self.shape[-1], 0, 0)
        source, size = self.sources[prompt.name], (area.height, area.width)
        if size not in self.ids:
            self.ids[size] = image_ids(*size, geometry=self.geometry).to(self.device)
        place = window.within(whole)
        within = source_in(source, prompt.height, prompt.width, area, self.geometry)
        behind = 0 if prompt.references is None else prompt.references.shape[1]
        side_tokens = 0 if prompt.side is None else prompt.side.count
        return replace(
            prompt,
            prompt=within,
            height=area.height,
            width=area.width,
            img_ids=self.ids[size],
            area=place,
            weight=None,
            extra=None if prompt.extra is None else area.cut(prompt.extra),
            extra_outside=None if prompt.extra_outside is None else area.cut(prompt.extra_outside),
            reference_ids=self.positions(prompt, source, size),
            conditions=[
                cut_condition(control, cond, place, self.vae, prompt.batch, self.device)
                for control, cond in zip(self.controls, self.conditions, strict=True)
            ],
            mask=own_mask(
                within, *size, behind, side_tokens, self.device, self.dtype, self.geometry
            ),
        )

    def positions(
        self, prompt: PreparedPrompt, source: Conditioning, size: tuple[int, int]
    ) -> Tensor | None:
        """Positions (R, axes) of a prompt's references beside a window, where it ends."""
        if prompt.references is None or source.references is None:
            return None
        key = (prompt.name, *size)
        if key not in self.reference_ids:
            latents = source.references.latents
            method = source.references.method
            _, ids = reference_tokens(latents, method, *size, 1, self.geometry)
            self.reference_ids[key] = ids.to(self.device)
        return self.reference_ids[key]


def source_in(
    source: Conditioning, height: int, width: int, area: Area, geometry: TokenGeometry
) -> Conditioning:
    """A prompt for one window of its part of ``height`` x ``width`` latents: attention biases, its
    own and its regions', are cut to the window."""
    attention, regional = source.attention, source.regional
    if attention is not None:
        attention = bias_in(attention, height, width, area, geometry)
    if regional is not None:
        about = (height, width, area, geometry)
        prompts = tuple(source_in(prompt, *about) for prompt in regional.prompts)
        regional = replace(regional, prompts=prompts)
    if attention is source.attention and regional is None:
        return source
    return replace(source, attention=attention, regional=regional)
