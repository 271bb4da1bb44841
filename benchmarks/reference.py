"""The other side of a comparison: diffusers' own pipeline in a process of its own, one picture after the other."""

from __future__ import annotations

import contextlib
import json
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import ProcessEnded, running


class Reference:
    """``facts`` are device, dtype, ``is_compiled`` and ``phase_seconds``; methods raise ``ProcessEnded``."""

    def __init__(self, process: subprocess.Popen[str], log: Path, timeout_s: float) -> None:
        self._process = process
        self._log = log
        self._timeout_s = timeout_s
        self.facts: dict[str, Any] = self._read()

    def draw(self, arguments: Sequence[Mapping[str, Any]]) -> list[float]:
        """Makes these pictures one after the other; seconds of each call alone."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        seconds: list[float] = self._read()
        return seconds

    def _read(self) -> Any:
        assert self._process.stdout is not None
        # It says one line at a time, so none can already lie in the buffer of this end.
        start_s = time.monotonic()
        readable, _, _ = select.select([self._process.stdout], [], [], self._timeout_s)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            tail = self._log.read_text(errors="replace")[-2000:]
            raise ProcessEnded(f"diffusers said nothing for {time.monotonic() - start_s:.0f} s, or ended:\n{tail}")
        return json.loads(line)


@contextlib.contextmanager
def started_reference(model_path: Path, options: Sequence[str], folder: Path, timeout_s: float) -> Iterator[Reference]:
    """Loaded when the block begins; ``options`` as ``reference_pipeline.py`` takes them."""
    log = folder / "reference.log"
    command = ["-m", "benchmarks.reference_pipeline", str(model_path), *options]
    with running(command, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Reference(process, log, timeout_s)
