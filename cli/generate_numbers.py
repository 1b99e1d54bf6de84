"""Numbers of ``generate``, checked without torch, so that a wrong one is answered at once.

What depends on a model, or on other numbers, is checked where it is known.
"""

from __future__ import annotations

import argparse

from flux_core.bounds import MOST_STEPS, check_number

#: What an option may be, as the pipeline has it: the name in a message, and the bounds.
SHARE, STRENGTH, SCALE = (0, 1), (-1000, 1000), (0, 1000)
WHOLE = {
    "steps": ("steps", 1, MOST_STEPS),
    "hires_steps": ("steps of hires", 1, MOST_STEPS),
    "batch_size": ("--batch-size", 1, None),
}
REAL = {
    "guidance": ("guidance", *SCALE),
    "cfg": ("cfg", *STRENGTH),
    "cfg_start": ("cfg start", *SHARE),
    "cfg_end": ("cfg end", *SHARE),
    "cfg_rescale": ("rescale", *SHARE),
    "nag_scale": ("NAG's scale", *SCALE),
    "denoise": ("denoise", *SHARE),
    "control_strength": ("control_strength", *STRENGTH),
    "control_end": ("control end", *SHARE),
    "hires": ("the scale of hires", 1, 16),
    "hires_denoise": ("denoise of hires", *SHARE),
}


def check_numbers(args: argparse.Namespace) -> None:
    """Raise ``ValueError`` for a number that is out of its range, and for sides that no picture
    has."""
    from flux_core.sampling.sizes import SIDE_UNIT, check_size

    for options, whole in ((WHOLE, True), (REAL, False)):
        for option, (name, low, high) in options.items():
            if getattr(args, option) is not None:
                check_number(getattr(args, option), name, low, high, whole=whole)
    for option in ("denoise", "hires_denoise"):
        if getattr(args, option) == 0:
            raise ValueError(f"{option} is 0, expected more than 0")
    # a side that is not given is the other's least: it is known later
    width, height = (SIDE_UNIT if side is None else side for side in (args.width, args.height))
    check_size(width, height, args.batch_size)
