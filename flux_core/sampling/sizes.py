"""Sides of pictures, checked without torch, so that a wrong one is told at once."""

from __future__ import annotations

from ..bounds import brief, check_number, is_integer
from ..units import readable_bytes

#: Sides of pictures in pixels, which are multiples of a unit: 8 for the VAE, 2 for a token.
MOST_SIDE, SIDE_UNIT = 16_384, 16
#: Sides and pictures about which it is said what they would take.
MOST_ASKED = 10**9
#: Tokens of all pictures of a batch together: 1024 pictures of 1024x1024, or 16 of 8192x8192.
MOST_TOKENS = 2**22
#: Bytes of latents and noise that a token takes at the least, in float32.
TOKEN_BYTES = 2 * 64 * 4


def check_size(width: object, height: object, batch: object = 1) -> None:
    """Refuse sides that are no multiples of 16 (8 for the VAE, 2 for a token), and pictures that
    together no memory holds."""
    check_side(width, "width")
    check_side(height, "height")
    check_number(batch, "batch_size", 1, MOST_ASKED, whole=True)
    rows, columns, count = int(height), int(width), int(batch)  # type: ignore[call-overload]
    tokens = count * (rows // SIDE_UNIT) * (columns // SIDE_UNIT)
    if max(rows, columns) > MOST_SIDE or tokens > MOST_TOKENS:
        pictures = f"{count} pictures of " if count > 1 else ""
        raise ValueError(
            f"{pictures}{columns}x{rows} pixels are {tokens} tokens, whose latents alone take "
            f"{readable_bytes(tokens * TOKEN_BYTES)}: expected sides of at most {MOST_SIDE} and "
            f"{MOST_TOKENS} tokens"
        )


def check_side(side: object, name: str) -> None:
    """Refuse a side that is no multiple of 16, or of which nobody would ask."""
    if not is_integer(side) or side < SIDE_UNIT or side % SIDE_UNIT:
        raise ValueError(
            f"{name} is {brief(side)}, expected a multiple of {SIDE_UNIT}, at least {SIDE_UNIT}"
        )
    if side > MOST_ASKED:
        raise ValueError(f"{name} is {brief(side)}, expected at most {MOST_SIDE}")
