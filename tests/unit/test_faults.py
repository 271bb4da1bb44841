"""Fault points: parsed strictly, counted over processes, and nothing at all unless armed."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from safelight import faults
from safelight.faults import arm, fault, parse


@pytest.fixture(autouse=True)
def _disarm() -> Iterator[None]:
    yield
    faults._rules.clear()


@pytest.mark.parametrize(
    "text", ["", "a.b=kill", "a.b@3=kill", "a.b@3+=sleep:0.5;c.d=full", " a.b=nan ; c_d.e_f@12=x ", "1:a.b@2=kill"]
)
def test_a_specification_is_parsed(text: str) -> None:
    assert len(parse(text)) == len([part for part in text.split(";") if part])


@pytest.mark.parametrize(
    "text",
    ["a", "a=kill", "a.b", "a.b=", "a.b@x=kill", "a.b@-1=kill", "A.b=kill", "a.b=sleep:x", "x:a.b=kill", ":a.b=kill"],
)
def test_a_malformed_specification_is_refused_with_the_part_that_is(text: str) -> None:
    with pytest.raises(ValueError, match="which is not POINT"):
        parse(f"c.d=kill;{text}")


def test_a_point_does_nothing_unless_armed(tmp_path: Path) -> None:
    assert fault("a.b") is None
    arm("other.point=error", tmp_path / "faults")
    assert fault("a.b") is None


def test_hits_are_counted(tmp_path: Path) -> None:
    arm("a.b@2=nan;c.d@2+=flat;e.f=nan", tmp_path / "faults")
    assert [fault("a.b") for _ in range(3)] == [None, "nan", None]
    assert [fault("c.d") for _ in range(3)] == [None, "flat", "flat"]
    assert [fault("e.f") for _ in range(2)] == ["nan", "nan"]


def test_a_point_of_one_worker_is_nothing_to_the_others(tmp_path: Path) -> None:
    for worker_id, seen in ((None, [None, None]), (0, [None, None]), (1, [None, "nan"])):
        arm("1:a.b@2=nan", tmp_path / "faults", worker_id)
        assert [fault("a.b") for _ in range(2)] == seen


def test_hits_are_counted_over_processes(tmp_path: Path) -> None:
    code = f"from safelight import faults; from pathlib import Path; faults.arm('a.b@3=nan', Path({str(tmp_path)!r})); "
    results = [
        subprocess.run([sys.executable, "-c", code + "print(faults.fault('a.b'))"], capture_output=True, text=True)
        for _ in range(4)
    ]
    assert [done.stdout.strip() for done in results] == ["None", "None", "nan", "None"]


def test_actions(tmp_path: Path) -> None:
    arm("a.error=error;a.full=full;a.sleep=sleep:0.05", tmp_path / "faults")
    with pytest.raises(RuntimeError):
        fault("a.error")
    with pytest.raises(OSError) as caught:
        fault("a.full")
    assert caught.value.errno == errno.ENOSPC
    start_s = time.monotonic()
    assert fault("a.sleep") is None
    assert time.monotonic() - start_s >= 0.05


def test_kill_is_kill_9(tmp_path: Path) -> None:
    code = f"from safelight import faults; from pathlib import Path; faults.arm('a.b=kill', Path({str(tmp_path)!r})); "
    done = subprocess.run([sys.executable, "-c", code + "faults.fault('a.b')"])
    assert done.returncode == -signal.SIGKILL
