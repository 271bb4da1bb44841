"""``/openapi.json`` against the real server: schemathesis makes thousands of requests out of it, good and bad ones.

All of its checks, but for what schemathesis.toml says: no 5xx, no status, content type or answer that is not declared,
nothing refused that the schema allows, nothing accepted that it forbids. (``--checks all`` would overrule that file.)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from safelight.config import STUB_MODEL
from tests.environments import python_with
from tests.server_process import ServerProcess

HERE = Path(__file__).parent
LEAST_OPERATIONS = 55
PACKAGE = "schemathesis==4.32.5"


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "phases",
    [
        "examples,coverage,stateful",
        pytest.param("fuzzing", marks=pytest.mark.slow),  # little but thinking of requests
    ],
)
def test_the_server_does_what_its_schema_says(phases: str, tmp_path: Path) -> None:
    environment = {"STUB_STEP_S": "0", "SAFELIGHT_PRIVATE_WEBHOOKS": "true"}
    options = ("--model", STUB_MODEL, "--queue-limit", "10000")
    with ServerProcess(tmp_path / "data", *options, environment=environment) as server:
        server.wait_until_ready()
        shutil.copy(HERE / "schemathesis.toml", tmp_path)
        command = [*python_with("schemathesis", PACKAGE, paths=(HERE,)), "-m", "schemathesis.cli"]
        wanted = ["run", f"{server.url}/openapi.json", "--max-examples", "3", "--seed", "1"]
        done = subprocess.run(
            [*command, *wanted, "--phases", phases, "--request-timeout", "20"],
            cwd=tmp_path,
            env=os.environ | {"SCHEMATHESIS_HOOKS": "schemathesis_hooks"},
            capture_output=True,
            text=True,
            timeout=350,
        )
        assert done.returncode == 0, done.stdout[-20_000:]
        tested = re.search(r"Tested: (\d+)", done.stdout)
        assert tested is not None and int(tested[1]) >= LEAST_OPERATIONS
        assert server.stop() == 0
        assert not [line for line in server.lines if "Traceback" in line]
