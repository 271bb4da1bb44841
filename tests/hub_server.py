"""A server that speaks the hub's protocol: revisions, hashes, gates, redirects to another host, ranges, failures."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

TOKEN = "hf_a_token_that_nobody_may_see"


@dataclass
class Trouble:
    """What goes wrong with one request: a status, or bytes that end, stall, or are others."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    hold_after: int | None = None
    is_damaged: bool = False
    ignores_range: bool = False
    has_length: bool = True


@dataclass
class Repository:
    """Files by path; ``branches`` name commits of them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    is_gated: bool = False
    is_private: bool = False


@dataclass
class Asked:
    """One request, as it came."""

    host: str
    path: str
    headers: dict[str, str]


class HubServer:
    """Use it as a context manager. ``troubles`` has for each file, or ``api``, what happens to the next requests."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.readers = {TOKEN}
        self.known_tokens = {TOKEN}
        self.troubles: defaultdict[str, deque[Trouble]] = defaultdict(deque)
        self.asked: list[Asked] = []
        self.lies: dict[str, Any] = {}
        """What the listing says of every file, whatever is true."""
        self.sent_bytes: Counter[str] = Counter()
        self.held = threading.Event()
        self.release = threading.Event()
        self._hub = _listen(self, "hub")
        self._cdn = _listen(self, "cdn")
        self.url = f"http://127.0.0.1:{self._hub.server_address[1]}"
        self.cdn_url = f"http://127.0.0.1:{self._cdn.server_address[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release.set()
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()

    def add(self, repository: str, files: Path | dict[str, bytes], branch: str = "main") -> str:
        """A new commit on a branch, which is its hash."""
        content = files if isinstance(files, dict) else folder_content(files)
        digest = hashlib.sha1(repr(sorted((name, git_hash(data)) for name, data in content.items())).encode())
        known = self.repositories.setdefault(repository, Repository())
        known.commits[digest.hexdigest()] = content
        known.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def requests_of(self, name: str) -> list[Asked]:
        """Those for one file, at either host."""
        return [asked for asked in self.asked if asked.path.endswith(name)]


def folder_content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".gguf"))


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that are killed are what it is there for."""


def _listen(hub: HubServer, host: str) -> ThreadingHTTPServer:
    class Handler(_Handler):
        server_of = hub
        host_name = host

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    server_of: HubServer
    host_name: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server_of.asked.append(Asked(self.host_name, path, headers))
        try:
            self._answer(path)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _answer(self, path: str) -> None:
        if self.host_name == "cdn":
            _, owner, name, rest = path.split("/", 3)
            return self._send_content(f"{owner}/{name}", rest)
        if path.startswith("api/models/"):
            repository, _, revision = path.removeprefix("api/models/").partition("/revision/")
            return self._send_listing(repository, revision)
        repository, _, rest = path.partition("/resolve/")
        commit, _, name = rest.partition("/")
        return self._resolve(repository, commit, name)

    def _send_listing(self, repository: str, revision: str) -> None:
        if self._is_in_trouble("api") or (known := self._may_see(repository)) is None:
            return
        commit = known.branches.get(revision, revision)
        if commit not in known.commits:
            return self._refuse(404, "RevisionNotFound")
        siblings = [_entry(name, data) | self.server_of.lies for name, data in known.commits[commit].items()]
        body = json.dumps({"id": repository, "sha": commit, "gated": "auto", "siblings": siblings}).encode()
        self._send(200, body, {"content-type": "application/json"})

    def _resolve(self, repository: str, commit: str, name: str) -> None:
        if (known := self._may_see(repository)) is None:
            return
        if known.is_gated and self._token not in self.server_of.readers:
            return self._refuse(403 if self._token else 401, "GatedRepo", f"Access to {repository} is restricted.")
        if name not in known.commits.get(commit, {}):
            return self._refuse(404, "EntryNotFound")
        if _is_large(name):
            location = f"{self.server_of.cdn_url}/objects/{repository}/{commit}/{name}?signature=secret"
            return self._send(302, b"", {"location": location})
        self._send_content(repository, f"{commit}/{name}")

    def _send_content(self, repository: str, rest: str) -> None:
        commit, _, name = rest.partition("/")
        data = self.server_of.repositories[repository].commits[commit][name]
        troubles = self.server_of.troubles[name]
        trouble = troubles.popleft() if troubles else Trouble()
        if trouble.status:
            return self._send(trouble.status, b"", trouble.headers)
        if trouble.is_damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = 0 if trouble.ignores_range else self._range_start()
        body = data[start:]
        headers = {"content-range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self._send_head(206 if start else 200, headers, len(body) if trouble.has_length else None)
        self._send_pieces(name, body, trouble)

    def _send_pieces(self, name: str, body: bytes, trouble: Trouble) -> None:
        stop = trouble.cut_after if trouble.cut_after is not None else trouble.hold_after
        first = body if stop is None else body[:stop]
        self.wfile.write(first)
        self.server_of.sent_bytes[name] += len(first)
        if trouble.cut_after is not None or not trouble.has_length:
            self.close_connection = True
        elif trouble.hold_after is not None:
            self.server_of.held.set()
            self.server_of.release.wait(60)
            self.wfile.write(body[len(first) :])
            self.server_of.sent_bytes[name] += len(body) - len(first)

    def _range_start(self) -> int:
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-"))

    @property
    def _token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    def _may_see(self, repository: str) -> Repository | None:
        if self._token and self._token not in self.server_of.known_tokens:
            self._refuse(401, "", "Invalid credentials in Authorization header")
            return None
        known = self.server_of.repositories.get(repository)
        if known is None or (known.is_private and self._token not in self.server_of.readers):
            if self._token:
                self._refuse(404, "RepoNotFound", "Repository not found")
            else:
                self._refuse(401, "", "Invalid username or password.")
            return None
        return known

    def _is_in_trouble(self, name: str) -> bool:
        if not self.server_of.troubles[name]:
            return False
        trouble = self.server_of.troubles[name].popleft()
        self._send(trouble.status, b"", trouble.headers)
        return True

    def _refuse(self, status: int, code: str, message: str = "") -> None:
        found = {"x-error-code": code, "x-error-message": message}
        self._send(status, json.dumps({"error": message}).encode(), {key: text for key, text in found.items() if text})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._send_head(status, headers, len(body))
        self.wfile.write(body)

    def _send_head(self, status: int, headers: dict[str, str], length: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is not None:
            self.send_header("content-length", str(length))
        self.end_headers()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_hash(data)}
    if _is_large(name):
        pointer = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 135}
        return entry | {"lfs": pointer, "blobId": git_hash(json.dumps(pointer).encode())}
    return entry
