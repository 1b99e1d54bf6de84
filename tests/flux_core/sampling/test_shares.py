"""Which device draws what of a step."""

from __future__ import annotations

import itertools

import pytest

from flux_core.sampling.shares import Share, dealt, share_of_first


def test_both_halves_of_one_picture_and_pictures_of_a_batch():
    both = [Share(0), Share(0, True)]
    assert dealt(both, 1) == [both]
    assert dealt(both, 2) == dealt(both, 4) == [[Share(0)], [Share(0, True)]]
    four = [Share(row, half) for row in range(2) for half in (False, True)]
    assert dealt(four, 2) == [four[:2], four[2:]]
    assert dealt(four, 4) == [[share] for share in four]
    assert dealt([Share(row) for row in range(3)], 2) == [[Share(0), Share(1)], [Share(2)]]


@pytest.mark.parametrize(("pictures", "devices"), list(itertools.product(range(1, 9), repeat=2)))
def test_they_are_as_even_as_they_can_be_with_guidance_and_without(pictures, devices):
    shares = [Share(row, half) for row in range(pictures) for half in (False, True)]
    hands = dealt(shares, devices)
    assert [share for hand in hands for share in hand] == shares and len(hands) == min(
        devices, len(shares)
    )
    assert max(map(len, hands)) == -(-len(shares) // len(hands))
    plain = [sum(not share.negative for share in hand) for hand in hands]
    assert max(plain) == -(-pictures // min(devices, len(shares)))
    assert share_of_first(pictures, True, devices) == len(hands[0]) / 2
