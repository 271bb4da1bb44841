"""Too many, too slow, too fast, and gone again: R35-R41 of the reliability map."""

from __future__ import annotations

import concurrent.futures
import contextlib
import operator
import random
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx2 as httpx
import psutil
import pytest

from tests.chaos.chaos_server import TERMINAL, ChaosServer, LivenessProbe, at_once
from tests.chaos.conftest import Start
from tests.chaos.test_drain import connected

MB = 1e6


def _rss_bytes(server: ChaosServer) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def _connections(server: ChaosServer) -> int:
    return int(server.metric("connections"))


@pytest.fixture
def _many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("_many_files")
def test_ten_thousand_idle_connections(start: Start) -> None:
    """R35: a soft limit of 1,024 files is raised by the server itself; above its maximum it refuses in words."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 12_000:
        pytest.skip("the hard limit of open files is too low here")
    server = start("--max-connections", "10000", "--head-timeout-s", "60")
    files, memory = server.open_files(), _rss_bytes(server)
    with LivenessProbe(server.url) as bursts:
        with connected(server, 9_990, b"GET"):
            assert _rss_bytes(server) - memory < 200 * MB
            with LivenessProbe(server.url) as probe:
                assert server.wait_for(server.submit(steps=200)["id"])["status"] == "succeeded"
            probe.assert_calm()
            with connected(server, 30, b"") as more:
                assert sum(b"503" in sock.recv(100) for sock in more[-10:]) == 10
        server.poll(lambda: server.open_files() <= files + 3, 10)
    bursts.assert_calm(p99_s=1.0, max_s=1.0)


@pytest.mark.slow
def test_too_few_files_are_no_disaster(start: Start) -> None:
    """R35 with a hard limit of 256: connections beyond it wait or are refused, then all is well again."""
    server = start()
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (80, 256))
    with connected(server, 300, b""):
        time.sleep(1.5)
        assert server.process.poll() is None
        busy_s = sum(psutil.Process(server.process.pid).cpu_times()[:2])
        time.sleep(1)
        assert sum(psutil.Process(server.process.pid).cpu_times()[:2]) - busy_s < 0.5
    server.poll(lambda: _answers(server), 20)
    server.lines.clear()  # asyncio says with tracebacks that it cannot accept


def _answers(server: ChaosServer) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return server.http.get("/livez", timeout=2).status_code == 200
    return False


@pytest.mark.timed
@pytest.mark.parametrize(
    ("sent", "trickle"),
    [
        (b"", b""),
        (b"POST /v1/images/generations HT", b""),
        (b"POST /v1/images/gen", b"x"),
        (b"POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99\r\n\r\n{", b""),
        (b"POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9999\r\n\r\n{", b" "),
    ],
    ids=["nothing", "half a head", "a head byte by byte", "half a body", "a body byte by byte"],
)
def test_slow_senders_are_closed_at_their_deadline(sent: bytes, trickle: bytes, start: Start) -> None:
    """R36: a hundred of each, while a good client is served."""
    server = start("--head-timeout-s", "1", "--body-timeout-s", "1.5")
    files = server.open_files()
    with LivenessProbe(server.url) as probe, connected(server, 100, sent) as socks:
        opened_s = time.monotonic()
        while _connections(server) > 2:
            assert time.monotonic() - opened_s < 1.5 + 2
            for sock in socks if trickle else []:
                with contextlib.suppress(OSError):
                    sock.send(trickle)
            time.sleep(0.1)
    probe.assert_calm(p99_s=0.15)
    server.poll(lambda: server.open_files() <= files + 2)


@pytest.mark.slow
def test_slow_readers_cost_little_and_are_cut_off(start: Start) -> None:
    """R37: fifty that ask for ten megabytes and read nothing."""
    server = start("--write-timeout-s", "2", step_s=0.001)
    url = urlsplit(server.url)
    head = (
        b"POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        b"content-type: application/json\r\nidempotency-key: big\r\n"
    )
    body = b'{"prompt": "chaos", "size": "2048x2048", "n": 10, "steps": 1, "output_format": "png"}'
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    whole = server.http.post(
        "/v1/images/generations",
        content=body,
        headers={"idempotency-key": "big", "content-type": "application/json"},
        timeout=60,
    )
    assert whole.status_code == 200
    memory = _rss_bytes(server)
    with LivenessProbe(server.url) as probe, contextlib.ExitStack() as stack:
        for _ in range(50):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect((url.hostname, url.port))
            sock.sendall(request)
        grown = 0
        cut_s = time.monotonic()
        while _connections(server) > 2:
            grown = max(grown, _rss_bytes(server) - memory)
            assert time.monotonic() - cut_s < 20
            time.sleep(0.05)
    probe.assert_calm()
    assert grown < 50 * MB


@pytest.mark.timed
def test_a_full_queue_refuses_quickly_and_does_what_it_took(start: Start) -> None:
    """R38: two hundred at once into a queue of sixteen."""
    server = start("--queue-limit", "16", step_s=0.5)
    memory = _rss_bytes(server)
    with LivenessProbe(server.url) as probe:
        answers = at_once(200, lambda number: server.try_submit(seed=number))
        for _ in range(3):
            assert 429 in at_once(200, lambda number: server.try_submit().status_code)
    probe.assert_calm(p99_s=0.4, max_s=0.5)
    taken = [answer.json()["id"] for answer in answers if answer.status_code == 201]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(taken) + len(refused) == 200
    assert 16 <= len(taken) <= 16 + 2
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.json()["error"]["code"] == "queue_full"
    assert server.get("/v1/models").status_code == 200
    while len(taken) > 2:
        assert server.post(f"/v1/predictions/{taken.pop()}/cancel").json()["status"] in ("canceled", "succeeded")
    assert {server.wait_for(name)["status"] for name in taken} == {"succeeded"}
    assert _rss_bytes(server) - memory < 64 * MB


def test_more_work_than_may_wait_is_refused(start: Start) -> None:
    server = start("--queue-work-limit", "100", step_s=0.05)
    answers = [server.try_submit(width=1024, height=1024, steps=50) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [201, 201, 429, 429]
    assert "megapixels" in answers[-1].json()["detail"]
    for answer in answers[:2]:
        server.post(f"/v1/predictions/{answer.json()['id']}/cancel")


def test_a_flood_of_one_key_does_not_keep_another_waiting(start: Start) -> None:
    """R39: at most two jobs later."""
    server = start(step_s=0.02)
    flood = [server.submit(key="flood", seed=number)["id"] for number in range(30)]
    single = server.submit(key="single")["id"]

    def ended(name: str, key: str) -> dict[str, Any]:
        headers, shown = {"x-key": key}, {"status": ""}
        while shown["status"] != "succeeded":
            shown = server.http.get(f"/v1/predictions/{name}", headers=headers).json()
        return shown

    asked, done = operator.itemgetter("created_at", "completed_at")(ended(single, "single"))
    others = [ended(name, "flood")["completed_at"] for name in flood]
    assert sum(asked < other < done for other in others) <= 3  # one is drawn, one runs, one has its turn
    assert sum(other > done for other in others) > 15


# --- clients that leave -------------------------------------------------------------------------------------------


def _ask(server: ChaosServer, steps: int, headers: str = "") -> socket.socket:
    url = urlsplit(server.url)
    body = f'{{"prompt": "chaos", "steps": {steps}}}'
    sock = socket.create_connection((url.hostname or "", url.port or 0))
    sock.sendall(
        f"POST /v1/images/generations HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n{headers}"
        f"content-length: {len(body)}\r\n\r\n{body}".encode()
    )
    return sock


def _leave(sock: socket.socket, how: str) -> None:
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.timed
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("moment", ["waiting", "running"])
def test_a_client_that_leaves_frees_its_place_within_a_step(how: str, moment: str, start: Start) -> None:
    """R40: and the next job starts at most one step and 50 ms later."""
    step_s = 0.1
    server = start(step_s=step_s)
    sock = _ask(server, 200)
    server.wait_until(lambda status: (status["workers"][0]["job"] or {"step": 0})["step"] >= 1)
    if moment == "waiting":
        second = _ask(server, 200)
        server.wait_until(lambda status: status["queue"]["waiting"] == 1)
        _leave(second, how)
        server.wait_until(lambda status: status["queue"]["waiting"] == 0, 0.5)
    name = server.submit(steps=5)["id"]
    left_s = time.monotonic()
    _leave(sock, how)
    server.poll(lambda: server.prediction(name)["status"] == "processing")
    assert time.monotonic() - left_s < step_s + 0.05 + 0.1  # polling takes time, too
    assert server.wait_for(name)["status"] == "succeeded"
    assert server.metric("cancelled_total", reason="disconnect") == (2 if moment == "waiting" else 1)


def test_a_client_that_half_closes_gets_its_picture(start: Start) -> None:
    """R40: ``nc -N`` is not gone."""
    server = start(step_s=0.05)
    with _ask(server, 20) as sock:
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while piece := sock.recv(65536):
            received += piece
    assert b"HTTP/1.1 200 OK" in received and b"b64_json" in received


def test_a_client_that_asked_to_keep_its_job_may_leave(start: Start) -> None:
    server = start(step_s=0.05)
    _ask(server, 10, "x-on-disconnect: keep\r\n").close()
    listed = server.poll(lambda: server.get("/v1/predictions").json()["results"])
    assert server.wait_for(listed[0]["id"])["status"] == "succeeded"


@pytest.mark.slow
def test_three_hundred_that_leave_leave_nothing(start: Start) -> None:
    """R40: files and jobs are back to where they were."""
    server = start("--queue-limit", "500", step_s=0.01)
    files = server.open_files()
    source = random.Random(40)
    for _ in range(6):
        socks = [_ask(server, 5) for _ in range(50)]
        source.shuffle(socks)
        for sock in socks:
            time.sleep(source.uniform(0, 0.004))
            _leave(sock, source.choice(["close", "reset"]))
    server.wait_until(lambda status: status["queue"] == {"waiting": 0, "running": 0, "limit": 500})
    server.poll(lambda: server.open_files() <= files + 2)
    assert server.is_balanced()
    assert server.wait_for(server.submit()["id"])["status"] == "succeeded"


@pytest.mark.slow
def test_cancels_that_race_with_the_end(start: Start) -> None:
    """R41: three hundred, three times each: never a 500, and what is final stays."""
    server = start("--queue-limit", "400", step_s=0.003)
    source = random.Random(41)

    def cancel_one(number: int) -> tuple[str, list[int], list[str]]:
        name = server.submit(seed=number, steps=2)["id"]
        time.sleep(source.uniform(0.0, 0.03))
        answers = [server.post(f"/v1/predictions/{name}/cancel") for _ in range(3)]
        return name, [answer.status_code for answer in answers], [answer.json()["status"] for answer in answers]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(cancel_one, range(300)))
    for name, codes, statuses in results:
        assert codes == [200] * 3
        final = server.wait_for(name)["status"]
        terminal = [status for status in statuses if status in TERMINAL]
        assert set(terminal) <= {final}, (name, statuses, final)
    assert server.is_balanced()
    assert server.metric("requests_total") == 300


@pytest.mark.timed
def test_liveness_through_everything_at_once(start: Start) -> None:
    server = start("--queue-limit", "20", "--head-timeout-s", "2", step_s=0.005)
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with contextlib.suppress(httpx.HTTPError):
                server.try_submit()
                server.get("/metrics")

    floods = [threading.Thread(target=flood) for _ in range(3)]
    with LivenessProbe(server.url) as probe, connected(server, 300, b"GET /half"):
        for thread in floods:
            thread.start()
        for _ in range(4):
            time.sleep(0.5)
            psutil.Process(server.worker_pid()).kill()
            assert server.is_balanced()
        stop.set()
        for thread in floods:
            thread.join()
    probe.assert_calm(p99_s=0.15)
    server.wait_until(lambda status: status["queue"]["waiting"] == status["queue"]["running"] == 0)
    assert server.is_balanced()
