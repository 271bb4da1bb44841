"""A small HTTP client of a Safelight server, used by the command line and by tests."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx

from safelight.errors import SafelightError, Unavailable, error_from_code

OnStep = Callable[[int, int], None]

_PROBE_TIMEOUT_S = 1.0


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

    def generate(self, body: dict[str, Any], on_step: OnStep | None = None) -> Picture:
        """One image. ``on_step`` is called from another thread with (steps done, total steps).

        Raises the server's error under its code, or ``Unavailable`` if nothing answers.
        """
        request_id = f"cli_{uuid.uuid4().hex}"
        if on_step is not None:
            follower = threading.Thread(target=self._follow_steps, args=(request_id, on_step), daemon=True)
            follower.start()
        try:
            answer = httpx.post(
                f"{self._url}/v1/images/generations",
                json=body,
                headers=self._headers | {"x-request-id": request_id},
                timeout=None,
                trust_env=False,
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"{self._url} does not answer: {error}") from None
        if answer.status_code != httpx.codes.OK:
            raise _error(answer)
        content = answer.json()
        image = content["data"][0]
        return Picture(base64.b64decode(image["b64_json"]), image["seed"], content["warnings"])

    def _follow_steps(self, request_id: str, on_step: OnStep) -> None:
        """Progress is a courtesy: a stream that breaks ends the bar, not the picture."""
        with (
            contextlib.suppress(httpx.HTTPError, ValueError, KeyError),
            httpx.stream(
                "GET", f"{self._url}/v1/status/stream", headers=self._headers, timeout=None, trust_env=False
            ) as events,
        ):
            was_seen = False
            for line in events.iter_lines():
                if not line.startswith("data: "):
                    continue
                workers = json.loads(line.removeprefix("data: "))["workers"]
                jobs = [job for worker in workers for job in worker["jobs"]]
                ours = [job for job in jobs if job["request_id"] == request_id]
                for job in ours:
                    on_step(job["step"], job["total_steps"])
                if was_seen and not ours:
                    return
                was_seen = bool(ours)


def _error(answer: httpx.Response) -> SafelightError:
    try:
        found = answer.json()["error"]
        return error_from_code(found["code"], found["message"])
    except (ValueError, KeyError, TypeError):
        return Unavailable(f"{answer.url} answered {answer.status_code}")
