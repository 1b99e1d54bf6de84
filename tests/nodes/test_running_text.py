"""What a long run says of itself, on its node and in the log."""

from __future__ import annotations

import logging
import types

import pytest
from fluxfit.nodes import host, running_text
from fluxfit.nodes.running_text import IN_LOG, ON_NODE, RunningText


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(running_text.time, "monotonic", lambda: now.seconds)
    return now


@pytest.fixture
def page(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(host, "tell_page", lambda message: lines.append(message["text"]))
    return lines


def test_a_new_stage_is_said_at_once_and_numbers_now_and_then(clock, page, caplog):
    text = RunningText()
    with caplog.at_level(logging.INFO, "fluxfit"):
        text("encoding captions, 1 of 2")
        text("training, loss 0.9, 1 of 600")
        text("training, loss 0.8, 2 of 600")
        clock.seconds += ON_NODE
        text("training, loss 0.7, 3 of 600")
        clock.seconds += IN_LOG
        text("training, loss 0.6, 4 of 600")
    numbers = [line.split()[-3:] for line in page]
    assert numbers == [["1", "of", "2"], ["1", "of", "600"], ["3", "of", "600"], ["4", "of", "600"]]
    assert [record.getMessage() for record in caplog.records] == [page[0], page[1], page[3]]


@pytest.mark.parametrize(
    ("node", "client", "sent"), [("3", "me", 1), (None, "me", 0), ("3", None, 0)]
)
def test_only_a_page_that_listens_is_told(node, client, sent, monkeypatch):
    messages = []
    server = types.SimpleNamespace(
        last_node_id=node, client_id=client, send_sync=lambda *message: messages.append(message)
    )
    monkeypatch.setattr(host, "page_server", lambda: server)
    host.tell_page({"text": "a"})
    assert messages == [("fluxfit.text", {"node": "3", "text": "a"}, "me")] * sent


def test_outside_of_the_host_nobody_is_told():
    assert host.page_server() is None
    host.tell_page({"text": "a"})
