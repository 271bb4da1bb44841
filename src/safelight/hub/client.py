"""The hub's HTTP interface, as far as downloads need it: what a revision holds, and the bytes of its files.

Not ``huggingface_hub``: that compares sizes only, not hashes, looks for tokens by itself, and has a cache and a log of
its own. Two documented addresses are all that is needed: ``/api/models/ID/revision/REV?blobs=true`` and
``/ID/resolve/COMMIT/FILE``, which may redirect to another host; the token goes to the hub only.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self
from urllib.parse import quote

import httpx2 as httpx
import msgspec

from safelight import __version__
from safelight.errors import PullError
from safelight.hub.access import HubAccess
from safelight.hub.errors import HubUnreachable
from safelight.hub.manifest import is_commit, is_inside
from safelight.hub.model_name import ModelName
from safelight.hub.refusals import refusal

_TIMEOUT = httpx.Timeout(30.0, connect=15.0)
_TRIES = 5
_BACK_OFF_S = 0.5
_MAX_RETRY_AFTER_S = 300
_OBJECT_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_TRY_AGAIN = frozenset({408, 429, 500, 502, 503, 504})


class LfsPointer(msgspec.Struct, frozen=True):
    """Where git keeps a hash instead of the file."""

    sha256: str
    size: int


class HubFile(msgspec.Struct, frozen=True, rename={"name": "rfilename", "blob_id": "blobId"}):
    """One file of a revision: large ones have ``lfs``, the others are git's own objects."""

    name: str
    size: int = 0
    blob_id: str = ""
    lfs: LfsPointer | None = None

    @property
    def size_bytes(self) -> int:
        return self.lfs.size if self.lfs else self.size

    @property
    def object_id(self) -> str:
        """SHA-256 of the content if it has 64 digits, else git's SHA-1 of the blob."""
        return self.lfs.sha256 if self.lfs else self.blob_id


class Listing(msgspec.Struct, frozen=True, rename={"commit": "sha", "files": "siblings"}):
    """What a revision is, and holds."""

    commit: str
    files: list[HubFile]


class _Again(Exception):
    """The try failed for a reason that may pass; ``after_s`` if the hub said when."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


class HubClient:
    """Use it as a context manager, from any number of threads. ``stop`` ends what waits or reads."""

    def __init__(self, access: HubAccess) -> None:
        self.access = access
        self._stopped = threading.Event()
        self._sockets: dict[int, socket.socket] = {}
        """Of the answers that threads are reading, by thread."""
        self._http = httpx.Client(
            timeout=_TIMEOUT,
            follow_redirects=True,
            headers={"user-agent": f"safelight/{__version__}", "accept-encoding": "identity"},
        )
        # Per request, not per client: a redirect to another host drops it.
        self._authorization = {} if access.token is None else {"authorization": f"Bearer {access.token}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def stop(self) -> None:
        """From now on every call ends with ``PullError``, also one that waits for a host that sends nothing."""
        self._stopped.set()
        for sock in list(self._sockets.values()):
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # of TLS, too, without its farewell

    def listing(self, model: ModelName) -> Listing:
        """The files of a revision, and the commit that it is now. Raises a leaf of ``PullError``."""
        revision = quote(model.revision or "main", safe="")
        url = f"{self.access.endpoint}/api/models/{model.repository}/revision/{revision}?blobs=true"
        tries = Tries(self)
        while True:
            try:
                with self._opened(url, model, {}) as answer:
                    return _parsed(answer.read(), model)
            except _Again as trouble:
                tries.wait(trouble)

    def content(self, model: ModelName, commit: str, file: HubFile, offset: int) -> Iterator[tuple[int, bytes]]:
        """The file in pieces, each with where it begins: at ``offset``, or at 0 if the host knows no ranges.

        A connection that breaks is opened anew where it broke. Raises a leaf of ``PullError``.
        """
        url = f"{self.access.endpoint}/{model.repository}/resolve/{commit}/{quote(file.name)}"
        tries = Tries(self)
        while offset < file.size_bytes:
            try:
                with self._opened(url, model, {"range": f"bytes={offset}-"} if offset else {}) as answer:
                    offset = _start(answer, offset)
                    for piece in answer.iter_bytes():
                        yield offset, piece
                        offset += len(piece)
                        tries.progress()
                if offset < file.size_bytes:
                    raise _Again("the connection ended early")
            except _Again as trouble:
                tries.wait(trouble)

    @contextlib.contextmanager
    def _opened(self, url: str, model: ModelName, headers: dict[str, str]) -> Iterator[httpx.Response]:
        self.check()
        try:
            with self._http.stream("GET", url, headers=self._authorization | headers) as answer:
                self._judge(answer, model)
                self._sockets[threading.get_ident()] = answer.extensions["network_stream"].get_extra_info("socket")
                yield answer
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise _Again(_reason(error)) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:  # a redirect without end, or to nowhere
            raise HubUnreachable(f"{self.access.endpoint} cannot be used: {type(error).__name__}") from None
        finally:
            self._sockets.pop(threading.get_ident(), None)

    def _judge(self, answer: httpx.Response, model: ModelName) -> None:
        if answer.is_success:
            return
        is_elsewhere = answer.url.origin != httpx.URL(self.access.endpoint).origin
        if answer.status_code in _TRY_AGAIN or is_elsewhere:  # an address that the hub signs is good for a while only
            raise _Again(f"it answered {answer.status_code}", _retry_after_s(answer))
        raise refusal(answer, model, self.access)

    def check(self) -> None:
        """Raises ``PullError`` once it is stopped."""
        if self._stopped.is_set():
            raise PullError("stopped: the same command goes on where it was")

    def pause(self, seconds: float) -> None:
        """Waits, but not longer than until ``stop``."""
        self._stopped.wait(seconds)
        self.check()


class Tries:
    """How often something may still fail: a new start after every byte that came."""

    def __init__(self, client: HubClient) -> None:
        self._client = client
        self._failed = 0

    def progress(self) -> None:
        self._failed = 0

    def wait(self, trouble: _Again) -> None:
        """Until the next try, growing. Raises ``HubUnreachable`` if it was the last, or would be too late."""
        self._failed += 1
        after_s = trouble.after_s or 0.0
        if self._failed >= _TRIES or after_s > _MAX_RETRY_AFTER_S:
            later = f"; it asks to wait {after_s:.0f} s" if after_s > _MAX_RETRY_AFTER_S else ""
            raise HubUnreachable(
                f"{self._client.access.endpoint} cannot be reached ({trouble}{later}): check the network and proxy, "
                "then run the same command again; it goes on where it was"
            )
        back_off_s = _BACK_OFF_S * 2 ** (self._failed - 1) * random.uniform(1.0, 1.5)  # noqa: S311
        self._client.pause(max(after_s, back_off_s))


def _parsed(body: bytes, model: ModelName) -> Listing:
    try:
        listing = msgspec.json.decode(body, type=Listing)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise PullError(f"what the hub says of {model} cannot be read: is --endpoint a Hugging Face hub?") from None
    for file in listing.files:
        if not is_inside(file.name) or file.size_bytes < 0:
            raise PullError(f"{model} has a file with a name that is not safe: {file.name!r}")
        if not _OBJECT_ID.fullmatch(file.object_id):
            raise PullError(f"the hub names no hash for {file.name} of {model}: is --endpoint a Hugging Face hub?")
    if not is_commit(listing.commit):
        raise PullError(f"the hub names no commit for {model}: is --endpoint a Hugging Face hub?")
    return listing


def _start(answer: httpx.Response, asked: int) -> int:
    """Where the bytes of an answer begin in the file."""
    if answer.status_code != httpx.codes.PARTIAL_CONTENT:
        return 0
    if not answer.headers.get("content-range", "").startswith(f"bytes {asked}-"):
        raise _Again("it sent another range than asked for")
    return asked


def _retry_after_s(answer: httpx.Response) -> float | None:
    """In seconds, or as a date, which the hub does not use."""
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() and len(text) < 10 else None


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
