"""Who may ask: keys in every form that clients send them, hosts, origins, and every route behind the door."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.routing import APIRoute

from safelight.config import load_config
from safelight.errors import ConfigError
from safelight.server.admission import PUBLIC_PATHS, is_loopback
from safelight.server.app import APIS, create_app
from safelight.server.front import Front
from safelight.server.listener import bind
from safelight.server.serve import serve
from safelight.server.worker_process import without_secrets
from tests.unit.running_front import make_front

pytestmark = pytest.mark.anyio

KEY, OTHER, ADMIN = "alice-secret-1", "bob-secret-2é", "admin-secret-3"
SETTINGS = {
    "api_keys": f"alice={KEY},bob=sha256:{hashlib.sha256(OTHER.encode()).hexdigest()}",
    "admin_keys": f"ops={ADMIN}",
}
LEAST_ROUTES = 40


def _front(folder: Path, checkpoint: Path, **settings: str) -> Front:
    config = load_config(settings, {})
    names = ("api_keys", "admin_keys", "allowed_hosts", "allowed_origins", "host")
    return make_front(folder, model=str(checkpoint), **{name: getattr(config, name) for name in names})


@contextlib.asynccontextmanager
async def _client(front: Front) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(front), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000") as client:
        yield client


def _basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


GOOD: list[dict[str, Any]] = [
    {"authorization": f"Bearer {KEY}"},
    {"authorization": f"bearer  {KEY} "},
    {"authorization": f"Token {KEY}"},
    {"authorization": f"Key {KEY}"},
    _basic("anyone", KEY),
    _basic(KEY, ""),
    *({name: KEY} for name in ("x-key", "api-key", "x-api-key", "x-goog-api-key")),
    {"authorization": f"Bearer {OTHER}".encode()},
    {"authorization": "Bearer wrong", "x-key": KEY},
]
BAD: list[dict[str, Any]] = [
    {},
    {"authorization": ""},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": KEY},
    {"authorization": f"Bearer {KEY}x"},
    {"authorization": f"Bearer {KEY[:-1]}"},
    {"authorization": f"Bearer {KEY.upper()}"},
    {"authorization": "Bearer é\xff".encode("latin-1")},
    {"authorization": "Bearer " + "x" * 10_000},
    {"authorization": "Basic !!!"},
    _basic("", ""),
    {"x-key": ""},
    {"x-key": hashlib.sha256(KEY.encode()).hexdigest()},
    {"cookie": f"key={KEY}"},
]


@pytest.mark.parametrize("headers", GOOD)
async def test_a_key_is_taken_in_every_form(headers: dict[str, Any], tmp_path: Path, checkpoint_dir: Path) -> None:
    async with _client(_front(tmp_path, checkpoint_dir, **SETTINGS)) as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize("headers", BAD)
async def test_anything_else_is_a_401_and_never_a_500(
    headers: dict[str, Any], tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with _client(_front(tmp_path, checkpoint_dir, **SETTINGS)) as client:
        answer = await client.get("/v1/models", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (answer.headers["www-authenticate"], answer.headers["x-should-retry"]) == ("Bearer", "false")
        assert answer.headers["x-request-id"]
        assert KEY not in answer.text


async def test_every_route_is_behind_the_door_or_on_the_public_list(tmp_path: Path, checkpoint_dir: Path) -> None:
    front = _front(tmp_path, checkpoint_dir, **SETTINGS)
    routes = [
        (method, route.path)
        for api in APIS
        for route in api.routes(front).routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]
    assert len({path for _, path in routes}) >= LEAST_ROUTES
    public = set()
    async with _client(front) as client:
        for method, path in [*routes, ("GET", "/openapi.json"), ("GET", "/"), ("GET", "/nothing")]:
            for spelling in (path, f"/{path}", path.replace("/v1", "/v1/../v1")):
                answer = await client.request(method, f"http://localhost:8000{spelling}")
                if answer.status_code != 401:
                    assert path == spelling
                    public.add(path)
    assert public == PUBLIC_PATHS | {"/files/{job_id}/{index}", "/page/{digest}/{name:path}"}


async def test_what_the_public_learns_of_the_state_is_one_word(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with _client(_front(tmp_path, checkpoint_dir, **SETTINGS)) as client:
        assert (await client.get("/readyz")).json() == {"status": "loading"}
        assert "workers" in (await client.get("/readyz", headers={"x-key": KEY})).json()


async def test_an_admin_route_needs_an_admin_key(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with _client(_front(tmp_path, checkpoint_dir, **SETTINGS)) as client:
        path = f"/v1/models/{checkpoint_dir}/load"
        refused = await client.post(path, headers={"x-key": KEY})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
        assert (await client.post(path, headers={"x-key": ADMIN})).status_code == 202


async def test_without_keys_everything_is_open(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with _client(_front(tmp_path, checkpoint_dir)) as client:
        for headers in ({}, {"authorization": "Bearer none"}, _basic("", "")):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200


# --- hosts and origins --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "", "[::2]"])
async def test_on_loopback_other_names_are_refused_whatever_the_method(
    host: str, method: str, tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with _client(_front(tmp_path, checkpoint_dir)) as client:
        answer = await client.request(method, "/v1/models", headers={"host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host_not_allowed")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "flux.example"])
async def test_own_and_announced_names_are_served(host: str, tmp_path: Path, checkpoint_dir: Path) -> None:
    async with _client(_front(tmp_path, checkpoint_dir, allowed_hosts="flux.example")) as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == 200


async def test_on_other_addresses_any_name_is_served(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with _client(_front(tmp_path, checkpoint_dir, host="0.0.0.0", **SETTINGS)) as client:
        headers = {"host": "anything.example", "x-key": KEY}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 400),
        ({"origin": "http://localhost:8000"}, 400),
        ({"origin": "https://app.example"}, 400),
        ({"sec-fetch-site": "same-origin"}, 400),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:9000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
async def test_pages_of_other_origins_may_not_change_anything(
    headers: dict[str, str], status: int, tmp_path: Path, checkpoint_dir: Path
) -> None:
    front = _front(tmp_path, checkpoint_dir, allowed_origins="https://app.example")
    await front.model.refresh()
    async with _client(front) as client:
        for method, path in (("POST", "/v1/images/generations"), ("PUT", "/v1/predictions/a")):
            answer = await client.request(method, path, json={}, headers=headers)
            assert answer.status_code == status
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


async def test_no_cors_unless_configured(tmp_path: Path, checkpoint_dir: Path) -> None:
    for folder, settings in (("a", {}), ("b", {"allowed_origins": "https://app.example"})):
        (tmp_path / folder).mkdir()
        async with _client(_front(tmp_path / folder, checkpoint_dir, **settings)) as client:
            for origin in ("https://app.example", "https://evil.example"):
                answer = await client.get("/v1/models", headers={"origin": origin})
                allowed = answer.headers.get("access-control-allow-origin")
                assert allowed == ("https://app.example" if settings and "app" in origin else None)


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["", " ", "alice", "alice=", "=secret-secret", "alice=short", "alice=sha256:123", f"a={KEY},a={KEY}", "a b=c"],
)
def test_a_key_that_is_none_is_refused_at_the_start_without_showing_it(value: str) -> None:
    for name in ("api_keys", "admin_keys"):
        with pytest.raises(ConfigError) as caught:
            load_config({}, {f"SAFELIGHT_{name.upper()}": value})
        assert "secret" not in caught.value.message and "short" not in caught.value.message
        assert name.upper() in caught.value.message


def test_the_configuration_holds_no_key() -> None:
    assert KEY not in repr(load_config(SETTINGS, {}))


def test_an_open_address_without_keys_is_refused(tmp_path: Path) -> None:
    config = load_config({"host": "0.0.0.0", "port": "0", "data_dir": str(tmp_path / "data")}, {})
    with (
        bind(config.host, config.port) as sock,
        pytest.raises(ConfigError, match="can be reached from outside: set SAFELIGHT_API_KEYS"),
    ):
        serve(config, sock)
    assert not (tmp_path / "data").exists()


def test_a_worker_does_not_get_the_keys() -> None:
    environment = {"SAFELIGHT_API_KEYS": "a=secret-secret", "PATH": "/bin", "STUB_STEP_S": "1"}
    assert without_secrets(environment) == {"PATH": "/bin", "STUB_STEP_S": "1"}


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
