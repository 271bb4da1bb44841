"""Tells the webhooks of jobs how they are, signed as Standard Webhooks has it.

The last message of a job is written down in the transaction that ends it, and is sent until it arrives or the job is
forgotten: a restart loses none. Those before it are sent once, and not more often than twice a second.
Specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import msgspec

from safelight.errors import SafelightError, StorageFull, StorageUnavailable
from safelight.jobs import COMPLETED, Job, Webhook
from safelight.server.dispatcher import Dispatcher
from safelight.server.follow import watch
from safelight.server.metrics import Metrics
from safelight.server.outbound import Outbound, PrivateAddress
from safelight.server.store import JobStore

log = logging.getLogger(__name__)

_RETRY_S = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 3600.0, 3600.0)
_AT_ONCE = 20
_LEAST_INTERVAL_S = 0.5
_LOOK_AGAIN_S = 30.0
_STORAGE_PAUSE_S = 1.0
_GONE = 410
_PREFIX = "whsec_"

Show = Callable[[Job, str], dict[str, Any]]
"""A job as the job API shows it, for a base URL."""


def secret_of(key: bytes, owner: str) -> str:
    """The caller's own secret, so that no caller can sign messages to another's address."""
    return _PREFIX + base64.b64encode(hmac.new(key, f"webhooks of {owner}".encode(), hashlib.sha256).digest()).decode()


def signed_headers(secret: str, message_id: str, time_s: int, body: bytes) -> dict[str, str]:
    """The three headers by which the receiver knows who sent this, and when."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signature = hmac.new(key, f"{message_id}.{time_s}.".encode() + body, hashlib.sha256).digest()
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(time_s),
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


class Webhooks:
    """``run`` for as long as the server does; ``accompany`` each new job that has one."""

    def __init__(
        self,
        store: JobStore,
        dispatcher: Dispatcher,
        metrics: Metrics,
        show: Show,
        key: bytes,
        *,
        may_be_private: bool,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._show = show
        self._key = key
        self._outbound = Outbound(may_be_private=may_be_private)
        self._due = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def secret(self, owner: str) -> str:
        """What the receivers of this owner's webhooks check signatures with."""
        return secret_of(self._key, owner)

    def accompany(self, job: Job) -> None:
        """Tells of the start and the progress of a job, while it is there."""
        webhook = job.request.webhook
        if webhook is not None:
            task = asyncio.get_running_loop().create_task(self._accompany(job, webhook))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _accompany(self, job: Job, webhook: Webhook) -> None:
        told_attempt, told_step = 0, 0
        try:
            async for _ in watch(self._dispatcher, job):
                if job.status.is_terminal:
                    break
                if "start" in webhook.events and told_attempt == 0 and job.attempt:
                    await self._post(job, webhook, "start")
                elif "logs" in webhook.events and job.step != told_step:
                    await self._post(job, webhook, f"logs_{job.attempt}_{job.step}")
                    await asyncio.sleep(_LEAST_INTERVAL_S)
                told_attempt, told_step = job.attempt, job.step
        except SafelightError:
            pass  # nobody works on it now; its end will be told whenever it comes
        self._due.set()

    async def run(self) -> None:
        """Sends what is due, for ever."""
        while True:
            self._due.clear()
            try:
                jobs, next_s = await self._store.due_webhooks(time.time(), _AT_ONCE)
                await asyncio.gather(*(self._deliver(job, tries) for job, tries in jobs))
            except (StorageFull, StorageUnavailable):
                await asyncio.sleep(_STORAGE_PAUSE_S)
                continue
            if not jobs:
                wait_s = _LOOK_AGAIN_S if next_s is None else min(max(next_s - time.time(), 0.05), _LOOK_AGAIN_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):  # wait_for would lose a cancellation that comes with the event
                        await self._due.wait()

    async def _deliver(self, job: Job, tries: int) -> None:
        webhook = job.request.webhook
        if webhook is None:
            return await self._store.webhook_done(job)
        status = await self._post(job, webhook, COMPLETED)
        if 200 <= status < 300:
            self._metrics.webhooks.labels("delivered").inc()
            return await self._store.webhook_done(job)
        if status == _GONE or tries >= len(_RETRY_S):
            log.warning("the webhook of %s is given up after %d tries", job.id, tries + 1, extra=job.ids)
            self._metrics.webhooks.labels("given_up").inc()
            return await self._store.webhook_done(job)
        self._metrics.webhooks.labels("failed").inc()
        await self._store.webhook_failed(job, tries + 1, time.time() + _RETRY_S[tries])

    async def _post(self, job: Job, webhook: Webhook, event: str) -> int:
        """The status of the answer, 0 if there was none."""
        body = msgspec.json.encode(self._show(job, webhook.base_url))
        headers = signed_headers(self.secret(job.request.owner), f"msg_{job.id}_{event}", int(time.time()), body)
        try:
            return await self._outbound.post(webhook.url, body, headers)
        except (OSError, PrivateAddress, httpx.HTTPError, httpx.InvalidURL) as error:
            log.warning("the webhook of %s could not be told: %s", job.id, type(error).__name__, extra=job.ids)
            return 0

    async def stop(self) -> None:
        """Stops telling; what is due is kept."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._outbound.close()
