"""Schedules of a LoRA's strength: points, lines and steps."""

from __future__ import annotations

import pytest

from flux_core.lora.schedule import StrengthSchedule


class TestGrammar:
    @pytest.mark.parametrize(
        "text, values",
        [
            ("0:1, 0.5:1, 0.8:0", {0: 1, 0.3: 1, 0.5: 1, 0.65: 0.5, 0.8: 0, 1: 0}),
            ("linear 0.2:2, 0.6:0", {0: 2, 0.2: 2, 0.3: 1.5, 0.6: 0, 0.7: 0}),
            ("step 0:1, 0.5:0, 0.7:-3", {0: 1, 0.49: 1, 0.5: 0, 0.69: 0, 0.7: -3, 1: -3}),
            ("0:1, 0.5:1, 0.5:0, 1:1", {0.4999: 1, 0.5: 0, 0.75: 0.5, 1: 1}),
            ("0.4:0.25", {0: 0.25, 0.4: 0.25, 1: 0.25}),
        ],
    )
    def test_points_are_joined_by_lines_or_steps(self, text, values):
        schedule = StrengthSchedule.parse(text)
        assert {share: schedule.at(share) for share in values} == pytest.approx(values)

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "0 points"),
            ("0:1, x", "'x' is no point, expected one such as 0.5:1"),
            ("0:1:2", "is no point"),
            ("curve 0:1", "'curve 0:1' is no point"),
            ("0.5:1, 0.2:0", "0.2 comes after 0.5, expected rising"),
            ("1.5:1", "share of point 0 is 1.5, expected 0 to 1"),
            ("0:1, 0.5:nan", "factor of point 1 is nan"),
            ("0:1, 0.5:1e9", "factor of point 1 is 1000000000.0"),
        ],
    )
    def test_what_is_wrong_is_named(self, text, message):
        with pytest.raises(ValueError, match=message) as raised:
            StrengthSchedule.parse(text)
        assert "\n" not in str(raised.value)
