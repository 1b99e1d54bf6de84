"""Names of devices that draw together."""

from __future__ import annotations

import pytest
import torch

from flux_core import OffloadPolicy
from flux_core.offload import OffloadRunner, Work
from flux_core.offload.devices import devices_of
from flux_core.offload.placement import Training

CPU = torch.device("cpu")


def test_a_policy_takes_a_text_or_names():
    assert OffloadPolicy().devices == OffloadPolicy(devices=" ").devices == ()
    for devices in ("cuda:1, cuda:0", ("cuda:1", "cuda:0"), [torch.device("cuda", 1), "cuda:0"]):
        assert OffloadPolicy(devices=devices).devices == ("cuda:1", "cuda:0")
    assert OffloadPolicy(devices="ALL").devices == ("all",)
    assert OffloadPolicy(devices="cpu:0,cpu:1").devices == ("cpu", "cpu:1")


@pytest.mark.parametrize(
    ("devices", "error"),
    [
        ("gpu1", "devices has 'gpu1', expected names such as cuda:0, or all"),
        ("cuda:0,,cuda:1", "devices has '', expected"),
        ("cuda", "expected the number of a card too"),
        ("meta", "devices has 'meta'"),
        (3, "devices is 3, expected names"),
        ([0], "devices has 0, expected"),
        ("cuda:0,cuda:0", "devices names cuda:0 twice"),
        ("cpu,cpu:0", "devices names cpu twice"),
        ("all,cuda:0", "expected all or names, not both"),
    ],
)
def test_what_names_no_devices_is_refused_in_words(devices, error):
    with pytest.raises(ValueError, match=error) as raised:
        OffloadPolicy(devices=devices)
    assert "\n" not in str(raised.value)


def test_the_run_s_own_device_comes_first(monkeypatch):
    assert devices_of((), CPU) == []
    assert devices_of(("cpu:1", "cpu"), CPU) == [CPU, torch.device("cpu", 1)]
    assert devices_of(("all",), CPU) == [CPU]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    first, second, third = (torch.device("cuda", index) for index in range(3))
    assert devices_of(("all",), second) == [second, first, third]
    assert devices_of(("cuda:0", "cuda:2"), third) == [third, first]
    with pytest.raises(ValueError, match="devices names cuda:3, and torch sees cuda:0 to cuda:2"):
        devices_of(("cuda:0", "cuda:3"), first)
    with pytest.raises(ValueError, match=r"cuda:0, cuda:1, and not cuda:2, where .* name it"):
        devices_of(("cuda:0", "cuda:1"), third)


def test_cards_that_are_not_there_are_refused():
    if torch.cuda.is_available():
        pytest.skip("there are cards")
    with pytest.raises(ValueError, match="devices names cuda:0, and torch sees no card"):
        devices_of(("cuda:0", "cuda:1"), CPU)


def test_training_is_on_one_device():
    runner = OffloadRunner(OffloadPolicy(devices="cpu,cpu:1"), CPU)
    with (
        pytest.raises(ValueError, match="training is on one device: take devices out"),
        runner.hold("transformer", torch.nn.Linear(1, 1), work=Work(training=Training())),
    ):
        pass
