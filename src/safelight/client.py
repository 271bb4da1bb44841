"""A small HTTP client of a Safelight server, used by the command line and by tests."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2 as httpx

from safelight.errors import SafelightError, Unavailable, error_from_code

OnStep = Callable[[int, int], None]
OnPreview = Callable[[bytes], None]
OnStatus = Callable[[dict[str, Any]], None]

DEFAULT_URL = "http://127.0.0.1:8000"

_PROBE_TIMEOUT_S = 1.0
_TIMEOUT_S = 30.0
_SILENCE_S = 40.0
"""A stream says something every 15 seconds, if only that it is still there."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as encoded bytes, with the seed that makes it again."""

    data: bytes
    seed: int
    warnings: list[str]


class Client:
    """Talks to one server. ``url`` is its root, such as ``http://127.0.0.1:8000``."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}

    def is_alive(self) -> bool:
        """Whether a Safelight server answers there within a second."""
        try:
            answer = httpx.get(f"{self._url}/livez", timeout=_PROBE_TIMEOUT_S, trust_env=False)
            return answer.status_code == httpx.codes.OK and answer.json() == {"status": "alive"}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return False

    def generate(
        self,
        body: dict[str, Any],
        on_step: OnStep | None = None,
        on_preview: OnPreview | None = None,
        on_status: OnStatus | None = None,
    ) -> Picture:
        """One image of ``POST /v1/images/generations``; who stops waiting for it has cancelled it.

        ``on_preview`` is called with each of the ``partial_images``, encoded. From another thread, ``on_step`` is
        called with (steps done, total steps), and before the first of them ``on_status`` with the server's status.
        Raises the server's error under its code, or ``Unavailable`` if nothing answers.
        """
        request_id = f"cli_{uuid.uuid4().hex}"
        if on_step is not None:
            follow = (request_id, on_step, on_status or (lambda _: None))
            threading.Thread(target=self._follow_steps, args=follow, daemon=True).start()
        headers = {"x-request-id": request_id}
        events = self._events("POST", "/v1/images/generations", body | {"stream": True}, headers)
        for name, data in events:
            event = json.loads(data)
            if name == "error":
                raise error_from_code(event["error"]["code"], event["error"]["message"])
            if name.endswith(".partial_image") and on_preview is not None:
                on_preview(base64.b64decode(event["b64_json"]))
            if name.endswith(".completed"):
                return Picture(base64.b64decode(event["b64_json"]), event["seed"], event["warnings"])
        raise Unavailable(f"{self._url} ended the stream before the picture was there")

    def status(self) -> dict[str, Any]:
        """The server's status now."""
        found: dict[str, Any] = self._ask("GET", "/v1/status").json()
        return found

    def status_events(self) -> Iterator[dict[str, Any]]:
        """The server's status now and after each change, until it stops. Raises as ``generate``."""
        return (json.loads(data) for _, data in self._events("GET", "/v1/status/stream"))

    def restart_workers(self, worker_id: str | None = None, model: str | None = None) -> dict[str, Any]:
        """Orders new processes for one worker or all, with this model or what they have; the ``rollout`` of the status.

        Raises ``NotFound`` or ``PermissionDenied``.
        """
        path = "/v1/workers" if worker_id is None else f"/v1/workers/{quote(worker_id, safe='')}"
        query = "" if model is None else f"?model={quote(model, safe='')}"
        found: dict[str, Any] = self._ask("POST", f"{path}/restart{query}").json()["rollout"]
        return found

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """The caller's jobs as the job API has them, newest first."""
        found: list[dict[str, Any]] = []
        path: str | None = "/v1/predictions"
        while path is not None and len(found) < limit:
            page = self._ask("GET", path).json()
            found += page["results"]
            path = page["next"] and "/v1/predictions?" + page["next"].partition("?")[2]
        return found[:limit]

    def job(self, name: str) -> dict[str, Any]:
        """One job. Raises ``NotFound``."""
        found: dict[str, Any] = self._ask("GET", f"/v1/predictions/{quote(name, safe='')}").json()
        return found

    def cancel(self, name: str) -> dict[str, Any]:
        """The job after the attempt to cancel it. Raises ``NotFound``."""
        found: dict[str, Any] = self._ask("POST", f"/v1/predictions/{quote(name, safe='')}/cancel").json()
        return found

    def picture_file(self, name: str, index: int) -> bytes:
        """One finished picture of a job."""
        return self._ask("GET", f"/v1/predictions/{quote(name, safe='')}/output/{index}").content

    def _ask(self, method: str, path: str) -> httpx.Response:
        with self._as_ours():
            answer = httpx.request(method, self._url + path, headers=self._headers, timeout=_TIMEOUT_S, trust_env=False)
        if not answer.is_success:
            raise _error(answer)
        return answer

    def _events(
        self, method: str, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Iterator[tuple[str, str]]:
        """Server-sent events: name and data."""
        timeout = httpx.Timeout(_TIMEOUT_S, read=_SILENCE_S)
        with (
            self._as_ours(),
            httpx.stream(
                method, self._url + path, json=body, headers=self._headers | (headers or {}), timeout=timeout,
                trust_env=False,
            ) as answer,
        ):  # fmt: skip
            if not answer.is_success:
                answer.read()
                raise _error(answer)
            yield from _parsed(answer.iter_lines())

    @contextlib.contextmanager
    def _as_ours(self) -> Iterator[None]:
        try:
            yield
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"{self._url} does not answer: {error}") from None

    def _follow_steps(self, request_id: str, on_step: OnStep, on_status: OnStatus) -> None:
        """Progress is a courtesy: a stream that breaks ends the bar, not the picture."""
        was_seen = False
        with contextlib.suppress(SafelightError, ValueError, KeyError):
            for status in self.status_events():
                jobs = [job for worker in status["workers"] for job in worker["jobs"]]
                ours = [job for job in jobs if job["request_id"] == request_id]
                for job in ours:
                    on_step(job["step"], job["total_steps"])
                if was_seen and not ours:
                    return
                was_seen = bool(ours)
                if not ours:
                    on_status(status)


def find_server(url: str | None, api_key: str | None) -> Client:
    """A client of the server there, or on this machine's usual address. Raises ``Unavailable`` if none answers."""
    client = Client(url or DEFAULT_URL, api_key)
    if not client.is_alive():
        raise Unavailable(f"no Safelight server answers at {url or DEFAULT_URL}")
    return client


def _parsed(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    name = ""
    for line in lines:
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, value


def _error(answer: httpx.Response) -> SafelightError:
    try:
        found = answer.json()["error"]
        return error_from_code(found["code"], found["message"])
    except (ValueError, KeyError, TypeError):
        return Unavailable(f"{answer.url} answered {answer.status_code}")
