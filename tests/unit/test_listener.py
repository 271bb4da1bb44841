"""The listening socket: bound at once, or one sentence."""

from __future__ import annotations

import socket
import time

import pytest

from safelight.errors import ConfigError, PortInUse
from safelight.server.listener import bind, url_of


def test_port_0_picks_a_free_one_that_accepts_connections_before_anyone_serves() -> None:
    with bind("127.0.0.1", 0) as sock:
        host, port = sock.getsockname()
        assert url_of(sock) == f"http://127.0.0.1:{port}"
        socket.create_connection((host, port), timeout=5).close()
        assert sock.getblocking() is False


@pytest.mark.timed
def test_a_port_in_use_is_one_sentence_in_under_a_second() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        start_s = time.monotonic()
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use by another process") as caught:
            bind("127.0.0.1", port)
        assert time.monotonic() - start_s < 1
        assert "\n" not in caught.value.message


def test_a_port_is_free_again_right_after_its_server_ended() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port), timeout=5)
        first.setblocking(True)
        accepted, _ = first.accept()
        accepted.close()
        client.close()
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "a..b", "a" * 64, "256.256.256.256"])
def test_an_address_that_is_not_ours_is_a_wrong_setting(host: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(host, 0)
    assert host in caught.value.message
    assert caught.value.param == "host"


def test_an_ipv6_url_has_brackets() -> None:
    try:
        sock = bind("::1", 0)
    except (ConfigError, OSError):
        pytest.skip("no IPv6 here")
    with sock:
        assert url_of(sock) == f"http://[::1]:{sock.getsockname()[1]}"
