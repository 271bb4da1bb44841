"""The workers that there are at the start: one for each device, and which model each of them begins with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from safelight.config import Config
from safelight.errors import NotEnoughMemory
from safelight.server.catalogue import Catalogue
from safelight.server.changes import Changes
from safelight.server.cluster import Cluster, LocalCluster
from safelight.server.devices import Device, resolve_devices
from safelight.server.metrics import Metrics
from safelight.server.served_model import ServedModel
from safelight.server.switch import free_host_bytes, kind_of, process_bytes
from safelight.server.worker import Worker

log = logging.getLogger(__name__)


def local_cluster(config: Config, command: Sequence[str]) -> LocalCluster:
    """The devices of this machine. Raises ``ConfigError`` if devices and workers contradict each other."""
    return LocalCluster(resolve_devices(config.device, workers=config.workers), command)


def make_workers(
    config: Config, models: Catalogue, changes: Changes, metrics: Metrics, cluster: Cluster
) -> list[Worker]:
    """Not started."""
    return [
        Worker(index, device, config, model, changes, metrics, cluster)
        for index, (device, model) in enumerate(_first_models(cluster.devices, models))
    ]


def _first_models(devices: Sequence[Device], models: Catalogue) -> list[tuple[Device, ServedModel]]:
    """Each pinned model gets a device, all others the default."""
    pinned = [model for model in models if model.is_pinned]
    if len(pinned) > len(devices):
        log.warning("%d models are pinned, but there are %d devices: not all can be loaded", len(pinned), len(devices))
    rest = [models.default] * len(devices)
    return list(zip(devices, [*pinned, *rest], strict=False))


def refuse_what_does_not_fit(workers: Sequence[Worker]) -> None:
    """Workers that share the host's memory load at the same time, and each would find all of it free.

    So those that do not fit beside the ones before them are not begun with. The first one always is: its own process
    knows best.
    """
    free_bytes, need_bytes, fitting = free_host_bytes(), 0.0, 0
    for worker in workers:
        device = worker.device.name
        if worker.wanted is None or kind_of(device) != "cpu":
            continue
        need_bytes += process_bytes(worker.wanted.loaded_bytes(device), device)
        if fitting and need_bytes > free_bytes:
            worker.refuse(
                NotEnoughMemory(
                    f"{fitting + 1} workers with {worker.wanted.id} need about {need_bytes / 1e9:.1f} GB, and "
                    f"{free_bytes / 1e9:.1f} GB are free: --workers {fitting} fits"
                )
            )
        else:
            fitting += 1
