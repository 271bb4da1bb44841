"""The small client against the real front: pictures, steps, errors under their codes."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safelight.client import Client, Picture
from safelight.errors import CheckpointInvalid, InvalidSize, SafelightError, Unavailable
from tests.unit.running_front import TIMEOUT_S, running_front, serving, until

pytestmark = pytest.mark.anyio


async def test_a_picture_with_its_seed_and_every_step(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front, serving(front) as server:
        client = Client(str(server.base_url))
        assert await asyncio.to_thread(client.is_alive)
        steps: list[tuple[int, int]] = []
        body = {"prompt": "a red circle", "seed": 7, "num_inference_steps": 12}
        picture = await asyncio.wait_for(
            asyncio.to_thread(client.generate, body, lambda step, total: steps.append((step, total))), TIMEOUT_S
        )
        assert picture == Picture(b"a red circle 7", 7, [])
        assert steps == sorted(steps)
        assert steps and {total for _, total in steps} == {12}


async def test_the_servers_error_comes_under_its_code(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "fails_to_load", model=str(checkpoint_dir)) as front, serving(front) as server:
        await until(front.changes, lambda: front.state == "failed")
        client = Client(str(server.base_url))
        with pytest.raises(CheckpointInvalid, match=r"vae/config\.json is missing"):
            await asyncio.to_thread(client.generate, {"prompt": "a"})
        with pytest.raises(InvalidSize, match="33x47"):
            await asyncio.to_thread(client.generate, {"prompt": "a", "size": "33x47"})
        assert client._url.endswith(str(server.base_url.port))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[", "http://no.such.host.invalid"])
def test_where_nothing_answers_nobody_is_alive_and_asking_says_so(url: str) -> None:
    assert not Client(url).is_alive()
    with pytest.raises(Unavailable):
        Client(url).generate({"prompt": "a"})


@pytest.fixture
def stranger() -> Iterator[str]:
    """Another kind of server, which answers everything with HTML."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST(200)

        def do_POST(self, status: int = 502) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"<html>Bad gateway</html>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_another_kind_of_server_is_not_taken_for_ours(stranger: str) -> None:
    assert not Client(stranger).is_alive()
    with pytest.raises(SafelightError, match="answered 502"):
        Client(stranger).generate({"prompt": "a"})
