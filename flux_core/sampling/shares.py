"""Which device draws what of a step: pictures of a batch, and of each both prompts of guidance.

    4 devices, 2 pictures, guided     2 devices, 3 pictures
    0: picture 0, positive            0: pictures 0 and 1
    1: picture 0, negative            1: picture 2
    2: picture 1, positive
    3: picture 1, negative

Each share is one call of the model (or one a window, or a region's area), with one picture.
"""

from __future__ import annotations

from typing import NamedTuple

from .request import DrawRequest


class Share(NamedTuple):
    """A picture of the batch, by its row, as the positive prompt or the ``negative`` one has it."""

    row: int
    negative: bool = False


def is_guided(request: DrawRequest) -> bool:
    """Whether a request draws its negative prompt too, at some of its steps."""
    return request.negatives is not None and request.settings.cfg != 1.0


def shares_of(request: DrawRequest) -> list[Share]:
    """All shares of a step that is guided, a picture's next to each other."""
    halves = (False, True) if is_guided(request) else (False,)
    return [Share(row, half) for row in range(len(request.latents)) for half in halves]


def dealt(shares: list[Share], devices: int) -> list[list[Share]]:
    """The shares of each device, as even as they can be, neighbours together; of no more devices
    than there are shares. A picture's positive half stays where it is in steps without guidance."""
    count = min(devices, len(shares))
    hands: list[list[Share]] = [[] for _ in range(count)]
    for number, share in enumerate(shares):
        hands[number * count // len(shares)].append(share)
    return hands


def share_of_first(pictures: int, guided: bool, devices: int) -> float:
    """What the first of some devices draws of each step, in steps of one picture."""
    halves = 2 if guided else 1
    shares = [Share(number // halves, bool(number % halves)) for number in range(pictures * halves)]
    return len(dealt(shares, devices)[0]) / halves
