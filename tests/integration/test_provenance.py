"""Content Credentials: signed by the real worker, read by the real library, with a certificate that the test makes."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

import c2pa
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from safelight.config import STUB_MODEL
from tests.server_process import ServerProcess

ACTION = {
    "action": "c2pa.created",
    "digitalSourceType": "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia",
    "softwareAgent": {"name": STUB_MODEL},
}


def _certificate(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey, *, is_ca: bool
) -> bytes:
    def named(text: str) -> x509.Name:
        return x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, text), x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Tests")]
        )

    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    usage = x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not is_ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A chain of two, and the key of the first."""
    folder = tmp_path_factory.mktemp("credentials")
    authority, signer = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    chain = _certificate("Signer", signer, "Authority", authority, is_ca=False)
    chain += _certificate("Authority", authority, "Authority", authority, is_ca=True)
    (folder / "chain.pem").write_bytes(chain)
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(signer.private_bytes(encoding, kind, serialization.NoEncryption()))
    return folder / "chain.pem", folder / "key.pem"


def _options(credentials: tuple[Path, Path]) -> list[str]:
    chain, key = map(str, credentials)
    return ["--model", STUB_MODEL, "--c2pa-certificate", chain, "--c2pa-private-key", key]


def _ask(server: ServerProcess, **members: object) -> bytes:
    made = server.post("/v1/predictions?", {"input": {"prompt": "a", "steps": 1, "seed": 1} | members}).json()
    server.wait_until(lambda status: status["queue"]["waiting"] == status["queue"]["running"] == 0)
    return server.get(f"/v1/predictions/{made['id']}/output/0").content


def test_every_kind_of_file_is_signed(credentials: tuple[Path, Path], tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path / "signed", *_options(credentials)) as server,
        ServerProcess(tmp_path / "plain", "--model", STUB_MODEL) as plain,
    ):
        server.wait_until_ready()
        plain.wait_until_ready()
        for kind in ("png", "jpeg", "webp"):
            data, unsigned = _ask(server, output_format=kind), _ask(plain, output_format=kind)
            found = json.loads(c2pa.Reader(f"image/{kind}", io.BytesIO(data)).json())
            assert found["validation_state"] in ("Valid", "Trusted")
            (assertion,) = found["manifests"][found["active_manifest"]]["assertions"]
            assert assertion["data"]["actions"] == [ACTION]
            assert len(data) - len(unsigned) < 20_000  # no thumbnail
            assert Image.open(io.BytesIO(data)).tobytes() == Image.open(io.BytesIO(unsigned)).tobytes()
            broken = data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]
            with pytest.raises(c2pa.C2paError):
                state = json.loads(c2pa.Reader(f"image/{kind}", io.BytesIO(broken)).json())["validation_state"]
                if state == "Invalid":
                    raise c2pa.C2paError(state)
        assert server.stop() == plain.stop() == 0


def test_credentials_that_cannot_sign_are_a_sentence(credentials: tuple[Path, Path], tmp_path: Path) -> None:
    chain, key = credentials
    with ServerProcess(tmp_path / "data", *_options((key, chain))) as server:
        failed = server.wait_until(lambda status: status["status"] == "failed")
        assert "cannot sign Content Credentials" in failed["workers"][0]["error"]
        assert server.stop() == 0
