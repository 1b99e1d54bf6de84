"""What a run is told to draw: prompts as the transformer reads them, and ControlNets.

Axis letters: B pictures, N text tokens, D and P widths, h and w latents, H and W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..bounds import check_number, check_span
from ..models.controlnet import FluxControlNet
from ..offload import OffloadPolicy
from .references import References


@dataclass(frozen=True, eq=False)
class Region:
    """Where in the picture a prompt counts, and how much beside the others there.

    ``area``: height, width, top and left, in latents where they are whole numbers and in shares of
    the picture where ``shares``; the transformer sees that part alone. ``mask`` (1 or B, H, W) of
    any size in [0, 1]. ``background``: it counts where the others leave room.
    """

    area: tuple[float, float, float, float] | None = None
    shares: bool = False
    mask: Tensor | None = None
    mask_strength: float = 1.0
    mask_bounds: bool = False  # the area is the mask's bounding box
    strength: float = 1.0
    background: bool = False

    @property
    def everywhere(self) -> bool:
        """Whether it is the whole picture, at full strength."""
        plain = self.area is None and self.mask is None and not self.background
        return plain and self.strength == 1.0


@dataclass(frozen=True, eq=False)
class AttentionBias:
    """What is added to the logits of attention, or booleans of which pairs may meet.

    ``values`` (1 or B, T, T) over the text and over ``rows`` x ``columns`` tokens of an image,
    which are stretched to those of the picture.
    """

    values: Tensor
    rows: int
    columns: int


@dataclass(frozen=True, eq=False)
class ControlPicture:
    """A picture of edges, depth or poses that Flex.2 reads beside the noise, and how much of it.

    ``latents`` are raw, (1 or B, 16, h, w) of any size. ``start`` and ``end`` are shares of the
    schedule, from 0 (noise) to 1. Raises ``ValueError`` for numbers out of range.
    """

    latents: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.strength, "a control picture's strength", -1000, 1000)
        check_span(self.start, self.end, "a control picture's")

    @property
    def whole(self) -> bool:
        """Whether it counts over the whole schedule."""
        return self.start <= 0 and self.end >= 1


@dataclass(frozen=True)
class RegionalOptions:
    """Over which steps regions count, and how strictly; numbers from 0 to 1.

    For the first ``share`` of the schedule a region's part of the picture reads the region's text,
    and the global one as much as ``base`` says (0 not at all, 1 as the background does); image
    tokens of unlike regions read each other as much as ``across`` says. Afterwards regions count as
    much as ``later`` says, and with 0 the global prompt is read alone.

    Raises ``ValueError`` for numbers out of range.
    """

    share: float = 1.0
    base: float = 0.0
    across: float = 0.4
    later: float = 0.0

    def __post_init__(self) -> None:
        for name in ("share", "base", "across", "later"):
            check_number(getattr(self, name), f"regional prompts' {name}", 0, 1)


#: What people get who say nothing else.
USUAL_REGIONS = RegionalOptions()


@dataclass(frozen=True, eq=False)
class RegionalPrompts:
    """Prompts for parts of the picture, read by attention in the global prompt's call of the model.

    ``prompts``: each with the ``region`` that reads it; of each its context, its region and its
    attention bias count. Raises ``ValueError`` for prompts that say what regions cannot.
    """

    prompts: Sequence[Conditioning]
    options: RegionalOptions = USUAL_REGIONS

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("regional prompts are empty, expected at least one region")
        for prompt in self.prompts:
            check_region(prompt)


def check_region(prompt: Conditioning) -> None:
    """Raise ``ValueError`` for a region's prompt that says what only a whole picture can have."""
    region = prompt.region
    check_number(region.strength, "a region's strength", 0, 1000)
    check_number(region.mask_strength, "a region's mask_strength", 0, 1000)
    if prompt.whole:
        raise ValueError("a region has neither a mask nor an area, expected one of them")
    for what, there in (
        ("a span of its own", prompt.start > 0 or prompt.end < 1),
        ("reference latents", prompt.references is not None),
        ("a picture beside the noise", prompt.picture is not None or prompt.mask is not None),
        ("a control picture", prompt.control is not None),
        ("regions of its own", prompt.regional is not None),
        ("what is left by others as its place", region.background),
    ):
        if there:
            raise ValueError(f"a region's prompt has {what}: only the global prompt can have that")


@dataclass(frozen=True)
class Conditioning:
    """What a prompt becomes: context (1 or B, N, D), pooled (1 or B, P), distilled guidance.

    ``pooled`` is None for families that read none (``models.families``); ``guidance`` None leaves
    the distilled guidance out.

    Models with a wider input (Canny, Depth, Fill) read ``picture`` beside the noise: raw latents
    (1 or B, 16, h, w). Fill reads ``mask`` too, (1 or B, 1, H, W) with 1 where to paint, and Flex.2
    both and ``control``.

    ``region`` and the span from ``start`` to ``end``, shares of the schedule from 0 (noise) to 1,
    say where and when it counts, if there are several. ``regional``: prompts of parts of the
    picture that are read in the same call.

    ``text_mask`` (1 or B, N) booleans: the tokens of the context that are read, None for all.
    """

    context: Tensor
    pooled: Tensor | None
    guidance: float | None = 3.5
    picture: Tensor | None = None
    mask: Tensor | None = None
    region: Region = field(default_factory=Region)
    start: float = 0.0
    end: float = 1.0
    references: References | None = None
    attention: AttentionBias | None = None
    text_mask: Tensor | None = None
    control: ControlPicture | None = None
    regional: RegionalPrompts | None = None

    @property
    def whole(self) -> bool:
        """Whether it is for the whole picture: it has no mask and no area."""
        return self.region.area is None and self.region.mask is None


@dataclass(frozen=True)
class Control:
    """A ControlNet with its condition.

    ``cond`` is raw VAE latents (1 or B, 16, h, w), or pixels (1 or B, 3, H, W) in [-1, 1] for nets
    that read pixels. ``start`` and ``end`` are shares of the schedule, from 0 (noise) to 1.
    ``mask`` (1 or B, 1, H, W), 1 where to paint, for inpainting nets. ``policy`` says where the
    net's weights live, where it is not with the transformer's; ``compute`` how its layers multiply,
    where it is not as it was opened.

    ``picture`` (1 or B, 3, H, W) in [-1, 1] is what ``cond`` was made of, and ``encode`` makes it
    anew of the picture in another size, where it is not of the size that is drawn.
    """

    net: FluxControlNet
    cond: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: int | None = None
    mask: Tensor | None = None
    policy: OffloadPolicy | None = None
    compute: str | None = None
    picture: Tensor | None = None
    encode: Callable[[Tensor], Tensor] | None = None

    @property
    def scales(self) -> bool:
        """Whether ``cond`` can be made anew in another size."""
        return self.picture is not None and self.encode is not None
