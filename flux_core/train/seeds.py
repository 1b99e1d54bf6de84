"""Seeds of a run's random streams, each made of the run's seed and of numbers that say what for.

So a random number depends on nothing but its place: no generator has a state to keep or to share.
"""

from __future__ import annotations

#: What a stream is for: noise, noise levels and dropped captions of a batch that is trained on;
#: which pictures are held out, and their noise.
TRAINING_STREAM, VALIDATION_STREAM = 1, 2


def combined_seed(*numbers: int) -> int:
    """A seed in [0, 2^63) of several numbers, such that neighbours have nothing in common."""
    seed = 0x9E3779B97F4A7C15
    for number in numbers:
        seed = (seed ^ number) * 0xBF58476D1CE4E5B9 % 2**64
        seed ^= seed >> 31
    return seed % 2**63
