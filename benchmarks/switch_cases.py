"""Seconds from a request for the model that is not loaded to its picture, and what the old model does meanwhile."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.adapter_cases import Put
from benchmarks.live_server import LiveServer, started_server
from benchmarks.traffic import Asked
from safelight.checkpoint import open_checkpoint

_NAMES = ("first", "second")
_PICTURES_MEANWHILE = 3
_POLL_S = 0.05
_SEEDS = itertools.count(1)


def measure_switch(
    overlap: str, model: str, device: str, size: str, steps: int, folder: Path, timeout_s: float, put: Put
) -> None:
    """There and back, with ``switch_overlap`` as given: ``always`` needs memory for both models."""
    source = open_checkpoint(model).path
    config = folder / f"switch-{overlap}.toml"
    tables = [
        f'[[models]]\nname = "{name}"\nmodel = {json.dumps(str(_same_files(source, folder / name)))}\n'
        for name in _NAMES
    ]
    config.write_text(f'switch_overlap = "{overlap}"\nmodel_wait_s = 5\n' + "\n".join(tables))
    options = ["--config", str(config), "--device", device, "--warmup-sizes", size]
    with started_server(options, folder, timeout_s) as server:
        server.wait_until_ready()
        (worker,) = server.status()["workers"]
        put({"overlap": overlap, "load_s": worker["seconds"], "phases": worker["phase_seconds"], "fit": worker["fit"]})
        first_s = min(_draw(server, _NAMES[0], size, steps) for _ in range(3))
        put({"overlap": overlap, "size": size, "steps": steps, "picture_s": first_s})
        for name in reversed(_NAMES):
            _switch(server, name, size, steps, put)


def _switch(server: LiveServer, name: str, size: str, steps: int, put: Put) -> None:
    other = next(each for each in _NAMES if each != name)
    meanwhile: list[float] = []
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(_draw, server, name, size, steps)
        if _keeps_serving(server, name):
            while not asked.done() and len(meanwhile) < _PICTURES_MEANWHILE:
                meanwhile.append(_draw(server, other, size, steps))
        seconds = asked.result()
    (worker,) = server.status()["workers"]
    put(
        {
            "to": name,
            "request_to_picture_s": seconds,
            "pictures_of_the_old_model_meanwhile_s": meanwhile,
            "switch": worker["switch"],
            "load_s": worker["seconds"],
            "phases": worker["phase_seconds"],
            "memory": worker["memory"],
        }
    )


def _keeps_serving(server: LiveServer, model: str) -> bool:
    """Whether the old model serves while ``model`` loads; waits until that is settled."""
    while True:
        (worker,) = server.status()["workers"]
        switch = worker["switch"]
        if switch and switch["to"] == model:
            if worker["coming"] is not None:
                return bool(switch["keeps_serving"])
            if switch["state"] != "running" or worker["model"] == model:
                return False
        time.sleep(_POLL_S)


def _draw(server: LiveServer, model: str, size: str, steps: int) -> float:
    return server.draw(Asked(0.0, "a red circle", size, steps, next(_SEEDS), model=model)).seconds


def _same_files(source: Path, folder: Path) -> Path:
    """A model of its own name with the same files, which lie on the disk once."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in source.iterdir():
        if part.name != "safelight.json":
            (folder / part.name).symlink_to(part.resolve())
    card = source / "safelight.json"
    if card.exists():
        members = json.loads(card.read_text()) | {"id": f"bench/{folder.name}"}
        (folder / card.name).write_text(json.dumps(members))
    return folder
