"""What ``deploy/`` says to Docker and Kubernetes holds for the real server: probes, settings, the time of a stop."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import yaml

from safelight.cli import build_parser
from safelight.config import STUB_MODEL, load_config
from tests.environments import python_with
from tests.server_process import ROOT, ServerProcess

FILE = ROOT / "deploy" / "kubernetes" / "safelight.yaml"
KUBERNETES = "1.37.0"
MANIFEST: dict[str, dict[str, Any]] = {document["kind"]: document for document in yaml.safe_load_all(FILE.read_text())}
POD = MANIFEST["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
ENVIRONMENT = {entry["name"]: entry.get("value", "alice=alices-long-secret") for entry in CONTAINER["env"]}
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
DOCKERFILE = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()


def _path(probe: str) -> str:
    path: str = CONTAINER[probe]["httpGet"]["path"]
    return path


def test_the_manifest_is_one_by_kubernetes_own_schema() -> None:
    validate = ["-c", "from kubernetes_validate.__main__ import main; raise SystemExit(main())", "--strict", str(FILE)]
    python = python_with("kubernetes", f"kubernetes-validate=={KUBERNETES}")
    done = subprocess.run([*python, *validate], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_manifests_parts_fit_each_other() -> None:
    assert set(MANIFEST) == {"PersistentVolumeClaim", "Deployment", "Service"}
    labels = MANIFEST["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert MANIFEST["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert MANIFEST["Service"]["spec"]["selector"] == labels
    (volume,) = POD["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == MANIFEST["PersistentVolumeClaim"]["metadata"]["name"]
    assert CONTAINER["volumeMounts"] == [{"name": volume["name"], "mountPath": ENVIRONMENT["SAFELIGHT_DATA_DIR"]}]


def test_the_settings_are_settings_and_leave_time_to_stop() -> None:
    config = load_config({}, ENVIRONMENT)
    stop_s = config.drain_delay_s + config.grace_period_s + 5
    assert POD["terminationGracePeriodSeconds"] > stop_s
    startup = CONTAINER["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= config.load_timeout_s
    assert CONTAINER["ports"][0]["containerPort"] == config.port


def test_probes_need_no_key_and_a_stop_is_seen_before_the_port_closes(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"STUB_LOAD_S": "1"}
    with ServerProcess(tmp_path / "data", "--model", STUB_MODEL, environment=environment) as server:
        first = {probe: server.get(_path(probe)).status_code for probe in PROBES}
        assert first == {"startupProbe": 503, "livenessProbe": 200, "readinessProbe": 503}
        server.wait_for_line("worker 0 ready")
        assert {server.get(_path(probe)).status_code for probe in PROBES} == {200}
        kubelet = {"host": "10.1.2.3:8000"}
        assert httpx.get(server.url + _path("readinessProbe"), headers=kubelet).status_code == 200
        assert server.get("/v1/status").status_code == 401
        server.process.terminate()
        began_s = time.monotonic()
        server.wait_for_line("draining")
        assert server.get(_path("readinessProbe")).status_code == 503
        assert server.get(_path("livenessProbe")).status_code == 200
        assert server.process.wait(POD["terminationGracePeriodSeconds"]) == 0
        assert time.monotonic() - began_s >= float(ENVIRONMENT["SAFELIGHT_DRAIN_DELAY_S"])


def test_the_image_starts_the_server_that_the_manifest_expects() -> None:
    for source in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}\n" in (ROOT / "deploy" / "docker" / "Dockerfile.dockerignore").read_text()
    (line,) = re.findall(r"^ENV (.+)$", DOCKERFILE, re.MULTILINE)
    environment = dict(pair.split("=") for pair in line.split())
    assert environment.items() <= ENVIRONMENT.items()
    (command,) = re.findall(r'^ENTRYPOINT \["safelight", (.+)\]$', DOCKERFILE, re.MULTILINE)
    build_parser().parse_args([part.strip('"') for part in command.split(", ")])
    assert f"USER {POD['securityContext']['runAsUser']}\n" in DOCKERFILE
    assert f"EXPOSE {CONTAINER['ports'][0]['containerPort']}\n" in DOCKERFILE


def test_the_page_explains_what_the_manifest_says() -> None:
    text = (ROOT / "docs" / "run-on-kubernetes.md").read_text()
    for probe in PROBES:
        assert f"`{probe}` on `{_path(probe)}`" in text
    assert f"`terminationGracePeriodSeconds` {POD['terminationGracePeriodSeconds']}" in text
    assert f"`SAFELIGHT_DRAIN_DELAY_S` {ENVIRONMENT['SAFELIGHT_DRAIN_DELAY_S']}" in text
