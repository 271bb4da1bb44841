"""The Triton kernels compute what the plain operations do. In the interpreter, so it says nothing of their speed.

Triton has an environment of its own: beside torch for the CPU it would be imported by every process for nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environments import folder_of, installed
from tests.server_process import ROOT

_TRITON = ("triton==3.6.0",)

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(sys.platform != "linux", reason="Triton has packages for Linux only"),
]


@pytest.fixture(scope="module")
def errors() -> dict[str, list[float]]:
    folder = folder_of("triton", _TRITON)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps", "--target")
    installed(folder, *pip, str(folder), *_TRITON)
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src"), str(ROOT)]),
    }
    cases = Path(__file__).parent / "kernel_cases.py"
    run = subprocess.run(
        [sys.executable, str(cases)], env=environment, timeout=200, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, list[float]] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("kind", "allowed"),
    [
        ("float32", 1e-6),
        ("bfloat16", 1e-2),  # one rounding where PyTorch has three
        ("vae", 1e-5),
        ("float8", 0.1),  # the interpreter cuts where the hardware rounds
        ("quantising", 0.1),
    ],
)
def test_kernels_equal_the_plain_operations(errors: dict[str, list[float]], kind: str, allowed: float) -> None:
    assert errors[kind]
    assert max(errors[kind]) < allowed, errors[kind]
