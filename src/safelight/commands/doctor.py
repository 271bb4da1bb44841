"""``safelight doctor``: what is wrong with this machine for this configuration, one line a finding."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

from safelight.checkpoint import open_checkpoint
from safelight.config import Config
from safelight.engine.memory_plan import plan_memory
from safelight.engine.options import EngineOptions
from safelight.errors import SafelightError
from safelight.hub.verification import verify
from safelight.server.devices import resolve_devices
from safelight.server.listener import bind
from safelight.server.switch import free_host_bytes, process_bytes

_MIN_FREE_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Finding:
    """``is_fatal`` findings keep the server from serving."""

    is_ok: bool
    sentence: str
    is_fatal: bool = True


def doctor(config: Config) -> int:
    """Prints every finding; 1 if one of them keeps the server from serving."""
    findings = []
    for check in (_machine, _data_dir, _port, _models):
        for finding in _guarded(check, config):
            findings.append(finding)
            mark = "ok  " if finding.is_ok else "FAIL" if finding.is_fatal else "warn"
            print(f"{mark}  {finding.sentence}", flush=True)
    return int(any(not finding.is_ok and finding.is_fatal for finding in findings))


def _guarded(check: Callable[[Config], Iterator[Finding]], config: Config) -> Iterator[Finding]:
    try:
        yield from check(config)
    except SafelightError as error:
        yield Finding(False, error.message)


def _machine(_config: Config) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    yield Finding(True, f"Python {platform.python_version()}, {cores} cores, {libraries}")


def _data_dir(config: Config) -> Iterator[Finding]:
    path = config.data_dir.absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(False, f"data directory {path} cannot be written: change its permissions or --data-dir")
        return
    free_bytes = shutil.disk_usage(existing).free
    enough = free_bytes >= _MIN_FREE_BYTES
    yield Finding(enough, f"data directory {path}: {free_bytes / 1e9:.1f} GB free", is_fatal=False)


def _port(config: Config) -> Iterator[Finding]:
    bind(config.host, config.port).close()
    yield Finding(True, f"port {config.port} on {config.host} is free")


def _models(config: Config) -> Iterator[Finding]:
    for entry in config.entries:
        yield from _guarded(_model, config.of(entry))


def _options(config: Config) -> EngineOptions:
    return EngineOptions(
        config.dtype,
        config.precision,
        config.memory,
        loras_dir=str(config.adapters_dir),
        memory_limit_mb=config.memory_limit_mb,
    )


def _model(config: Config) -> Iterator[Finding]:
    checkpoint = open_checkpoint(config.model, config.pulled_models, config.base_model)
    for folder, is_used in checkpoint.folders.items():
        verify(folder, is_used=is_used)
    size = f"{checkpoint.weight_bytes / 1e6:.1f} MB of weights"
    yield Finding(True, f"model {config.model}: {checkpoint.card.title}, every file is whole, {size}")
    for device in resolve_devices(config.device):
        plan = plan_memory(checkpoint, device.name, _options(config))
        yield Finding(True, f"device {device.name}: the model takes about {plan}, and fits")
        if plan.note:
            yield Finding(False, f"device {device.name}: {plan.note}", is_fatal=False)
    devices = resolve_devices(config.device, workers=config.workers)
    if devices[0].torch_name == "cpu" and len(devices) > 1:
        need_bytes = len(devices) * process_bytes(plan.device_bytes, "cpu")
        sentence = f"{len(devices)} workers need about {need_bytes / 1e9:.1f} GB"
        yield Finding(
            need_bytes <= free_host_bytes(), f"{sentence}, {free_host_bytes() / 1e9:.1f} GB are free", is_fatal=False
        )
