"""The nginx configuration of ``docs/let-others-in.md``, as it stands but for port and files, before the real server."""

from __future__ import annotations

import datetime
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from PIL import Image

from safelight.config import STUB_MODEL
from tests.documented_commands import ADDRESS, blocks
from tests.server_process import ROOT, ServerProcess

NAME = "images.example.org"
PAGE = ROOT / "docs" / "let-others-in.md"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


@pytest.fixture(scope="module", autouse=True)
def _nginx() -> None:
    if NGINX is None:
        reason = "no nginx: apt-get install nginx-light"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    options = ("--model", STUB_MODEL, "--allowed-hosts", NAME)
    with ServerProcess(tmp_path_factory.mktemp("data"), *options, environment={"STUB_STEP_S": "0.1"}) as server:
        server.wait_for_line("worker 0 ready")
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
def proxy(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = _self_signed(folder)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    (block,) = blocks(PAGE, "nginx")
    text = block.code.replace("listen 443", f"listen 127.0.0.1:{port}").replace(ADDRESS, server.url)
    text = text.replace(f"/etc/ssl/{NAME}.pem", str(certificate)).replace(f"/etc/ssl/{NAME}.key", str(key))
    places = "".join(f"{kind}_temp_path {folder}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.geteuid() == 0 else ""  # else its worker may not write into the test's folder
    file = folder / "nginx.conf"
    main = f"{user} daemon off; error_log stderr; pid {folder}/pid; events {{}}"
    file.write_text(f"{main}\nhttp {{ access_log off; {places}\n{text}}}")
    process = subprocess.Popen([str(NGINX), "-c", str(file), "-p", str(folder)])
    trust = ssl.create_default_context(cafile=str(certificate))
    url = f"https://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, headers={"host": NAME}, verify=trust, timeout=60) as client:
            _wait_for(port, process)
            yield client
    finally:
        process.terminate()
        code = process.wait(10)
    assert code == 0


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until nginx listens, which it does not say."""
    end_s = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < end_s:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("nginx does not listen")


def _self_signed(folder: Path) -> tuple[Path, Path]:
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.DNSName(NAME), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    certificate = builder.add_extension(x509.SubjectAlternativeName(names), critical=False).sign(key, hashes.SHA256())
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
    return paths


def _job(proxy: httpx.Client, **members: object) -> dict[str, object]:
    given = {"prompt": "a red circle", "steps": 30, **members}
    answer = proxy.post("/v1/predictions", json={"input": given})
    assert answer.status_code == 201, answer.text
    job: dict[str, object] = answer.json()
    return job


def test_addresses_are_those_of_the_proxy(proxy: httpx.Client) -> None:
    job = _job(proxy, steps=1)
    assert json.dumps(job["urls"]).count(f"https://{NAME}/v1/predictions/") == 3


def test_the_server_answers_for_the_proxys_name_only(server: ServerProcess) -> None:
    assert httpx.get(f"{server.url}/v1/models", headers={"host": "other.example.org"}).status_code == 421


def test_events_pass_as_they_happen(proxy: httpx.Client) -> None:
    job = _job(proxy)
    with proxy.stream("GET", f"/v1/predictions/{job['id']}/stream") as stream:
        lines = stream.iter_lines()
        next(line for line in lines if line.startswith("event: logs"))
        assert proxy.get(f"/v1/predictions/{job['id']}").json()["status"] == "processing"
        assert "event: done" in list(lines)


def test_pictures_of_many_megabytes_can_be_edited(proxy: httpx.Client) -> None:
    noise = Image.effect_noise((2400, 2400), 100)
    file = io.BytesIO()
    noise.save(file, "PNG")
    assert file.tell() > 4_000_000
    answer = proxy.post(
        "/v1/images/edits",
        data={"prompt": "a red circle", "steps": "1", "size": "64x64"},
        files={"image": ("noise.png", file.getvalue(), "image/png")},
    )
    assert answer.status_code == 200, answer.text


def test_a_client_that_leaves_cancels_its_picture(proxy: httpx.Client, server: ServerProcess) -> None:
    with pytest.raises(httpx.ReadTimeout):
        proxy.post("/v1/images/generations", json={"prompt": "a blue square", "steps": 200}, timeout=1)
    server.wait_until(lambda status: status["queue"]["running"] == 0, timeout_s=10)
    assert 'safelight_cancelled_total{reason="disconnect"} 1.0' in server.get("/metrics").text
