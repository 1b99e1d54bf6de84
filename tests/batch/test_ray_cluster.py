"""How workers are spread over a cluster, without one."""

from __future__ import annotations

import io
import socket
import sys
from contextlib import redirect_stdout

import pytest
from fluxfit.batch.ray_cluster import Placement, WithoutRay, connected, knock, place

from flux_core.errors import ConfigError

HEAD = {"memory": 1e9}
LARGE = {"CPU": 32.0, "GPU": 4.0}
SMALL = {"CPU": 6.0, "GPU": 1.0}
CORES = {"CPU": 8.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "cores", "expected"),
    [
        ([HEAD, LARGE, SMALL], None, None, 0, Placement(5, 1, 1.0, 6)),
        ([LARGE], None, 2.0, 0, Placement(2, 1, 2.0, 16)),
        ([LARGE, SMALL], None, 0.5, 0, Placement(10, 1, 0.5, 3)),
        ([LARGE], 3, None, 0, Placement(3, 1, 1.0, 8)),
        ([HEAD, CORES, CORES], None, None, 0, Placement(2, 8, 0, 8)),
        ([CORES, CORES], 5, None, 0, Placement(5, 2, 0, 2)),
        ([LARGE], 2, 0.0, 0, Placement(2, 16, 0, 16)),
        ([{"CPU": 2.0}], 2, None, 2, Placement(2, 1, 0, 1)),
        ([{"CPU": 8.0}], 8, None, 2, Placement(8, 1, 0, 1)),
        ([{"CPU": 2.0}], None, None, 2, Placement(1, 1, 0, 2)),
    ],
)
def test_workers_have_a_share_of_their_node(nodes, workers, gpus, cores, expected):
    assert place(nodes, workers, gpus, cores) == expected


def test_more_cards_than_a_node_has_are_refused():
    with pytest.raises(ConfigError, match="--gpus-per-worker 8: no node has so many, at most 4"):
        place([SMALL, LARGE], None, 8.0, 0)


def test_a_cluster_without_cores_is_refused():
    with pytest.raises(ConfigError, match="no node of the cluster has a core"):
        place([HEAD], None, None, 0)


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install 'fluxfit\\[ray\\]'"), connected("local", 1):
        pass


def test_nobody_at_an_address_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        port = free.getsockname()[1]
        with pytest.raises(OSError):
            knock(f"127.0.0.1:{port}")
        free.listen()
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "auto", "local"):
            knock(address)


def test_stdout_is_without_what_rays_daemons_say():
    out = io.StringIO()
    with redirect_stdout(WithoutRay(out)):
        print("before")
        print("\x1b[33m(raylet)\x1b[0m A worker died or was killed")
        print("behind")
    assert out.getvalue() == "before\nbehind\n"
