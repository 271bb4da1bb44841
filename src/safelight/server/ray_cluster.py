"""A Ray cluster: Ray places each worker on a node that has a card free, and grows or shrinks as it likes.

The front is a driver of Ray. What it owns, the queue and the jobs, stays with it: a node that goes takes processes
along, never a job. Imported only if ``--cluster`` asks for it.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import os
import re
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

# Ray reads these when it is imported. Without the first, a front whose cluster has lost its head is ended by Ray.
os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(10 * 365 * 86_400))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError

from safelight.checkpoint.fingerprint import fingerprint
from safelight.config import Config
from safelight.server.cluster import Resize
from safelight.server.devices import Device
from safelight.server.ray_host import WorkerHost
from safelight.server.ray_process import Birth, RayProcess, in_thread
from safelight.server.served_model import ServedModel
from safelight.server.worker_log import log_line, print_line
from safelight.server.worker_orders import process_options
from safelight.server.worker_process import without_secrets

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_ANSWER_S = 20.0
_CONNECT_S = 60.0
_SHUTDOWN_S = 10.0
_PAUSE_S = 3.0
_HEAD_PORT = 6379
_SPREAD = "SPREAD"
"""Ray's strategy for many small ones: those on CPUs go to different nodes while there are such."""

Node = Mapping[str, Any]


class RayCluster:
    """As ``Cluster``. ``devices`` are none until it is connected; all of them are alike."""

    devices: Sequence[Device] = ()

    def __init__(self, config: Config) -> None:
        self._config = config
        self._address = ray_address(config.cluster or "ray")
        self._nodes: list[Node] = []
        self._kind = ""
        self._closed = threading.Event()
        self._error: str | None = f"not connected to {config.cluster} yet"

    async def spawn(self, device: Device, worker_id: int, model: ServedModel) -> RayProcess:
        """As ``Cluster``; returns before there is a node for it."""
        config = _with_absolute_paths(model.config)
        mark = await asyncio.to_thread(fingerprint, model.checkpoint)
        birth = Birth(worker_id, mark, device.environment, process_options(config, worker_id))
        on_line = functools.partial(log_line, worker_id=worker_id) if config.log_format == "json" else print_line
        try:
            host = await in_thread(lambda: _host(device, config.lease_s), _ANSWER_S)
        except (RayError, TimeoutError) as error:
            raise ConnectionError(f"the Ray cluster does not answer: {error}") from error
        return RayProcess(host, birth, config.lease_s, on_line)

    async def keep(self, resize: Resize) -> None:
        """As ``Cluster``: connects, and connects again when the cluster is gone."""
        while True:
            try:
                # The Ray that it may start ends with the thread that started it.
                await in_thread(functools.partial(_connect, self._address), _CONNECT_S, self._closed.wait)
                _take_signals_back()
                log.info("connected to the Ray cluster %s", self._config.cluster)
                await self._follow(resize)
            except (RayError, OSError, RuntimeError, ValueError, TimeoutError) as error:
                self._error = f"the Ray cluster {self._config.cluster} cannot be reached: {_sentence(error)}"
                log.error("%s; the next try is in %.0f s", self._error, _PAUSE_S)
            await self.close()
            await asyncio.sleep(_PAUSE_S)

    async def _follow(self, resize: Resize) -> None:
        """Raises if the cluster, or the node that we are on, does not answer."""
        own_id = await in_thread(lambda: ray.get_runtime_context().get_node_id(), _ANSWER_S)
        while True:
            nodes = await in_thread(ray.nodes, _ANSWER_S)
            self._nodes = [node for node in nodes if node["Alive"]]
            if own_id not in (node["NodeID"] for node in self._nodes):
                raise ConnectionError("the node on this machine has ended")
            self._error = None
            self._kind = self._kind or kind_of_devices(self._config.device, self._nodes)
            resize(devices_of(self._kind, self._nodes, self._config.workers))
            await asyncio.sleep(_LOOK_S)

    def status(self) -> dict[str, Any]:
        """As ``Cluster``."""
        return {"address": self._config.cluster, "nodes": len(self._nodes), "error": self._error}

    async def close(self) -> None:
        """As ``Cluster``; ends the Ray that was started here."""
        try:
            await in_thread(ray.shutdown, _SHUTDOWN_S)
        except Exception as error:
            log.warning("Ray did not let go of us: %s", _sentence(error))
            # It would be asked again when this process ends, and wait for its head for as long as it takes.
            atexit.unregister(os._exit)
            atexit.register(os._exit, 0)
        self._closed.set()
        self._closed = threading.Event()


def ray_address(cluster: str) -> str | None:
    """What ``ray.init`` takes: ``HOST:PORT`` of the head, ``None`` for the Ray of this machine."""
    address = cluster.removeprefix("ray").removeprefix(":").removeprefix("//")
    if not address:
        return None
    return address if re.search(r":[0-9]+$", address) else f"{address}:{_HEAD_PORT}"


def kind_of_devices(setting: str, nodes: Sequence[Node]) -> str:
    """``cuda`` or ``cpu``; ``auto`` looks for GPUs once, when the first node has been seen."""
    if setting in ("cuda", "all"):
        return "cuda"
    has_gpus = any(node["Resources"].get("GPU", 0) >= 1 for node in nodes)
    return "cuda" if setting == "auto" and has_gpus else "cpu"


def devices_of(kind: str, nodes: Sequence[Node], workers: int) -> list[Device]:
    """One for each GPU, or one a node that has a CPU for it, or as many as were asked for; at least one."""
    if kind == "cuda":
        count = sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
    else:
        count = sum(node["Resources"].get("CPU", 0) >= 1 for node in nodes)
    torch_name = "cuda:0" if kind == "cuda" else "cpu"
    # Ray shows a worker the card that it gave it; on the CPU it is to see none.
    environment = {} if kind == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    names = [f"{kind}:ray-{index}" for index in range(workers or max(count, 1))]
    return [Device(name, torch_name, environment, is_placed=True) for name in names]


def _host(device: Device, lease_s: float) -> Any:
    """The handle of an actor that Ray is to find a node for. Ray never starts it again: that is the front's to do."""
    resources = {"num_gpus": 1, "num_cpus": 0} if device.torch_name.startswith("cuda") else {"num_cpus": 1}
    options = resources | {"max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": _SPREAD}
    return ray.remote(WorkerHost).options(**options).remote(lease_s)


def _connect(address: str | None) -> None:
    """Joins it; without an address the Ray of this machine, which is started if there is none.

    What is started has our environment: the secrets leave it first.
    """
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # it repeats other logs; what fails is raised
    for name in set(os.environ) - set(without_secrets(os.environ)):
        del os.environ[name]
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "namespace": "safelight"}
    if address is not None:
        ray.init(address, **options)
        return
    try:
        ray.init("auto", **options)
    except ConnectionError:
        log.info("no Ray runs on this machine: one is started, for as long as this server runs")
        ray.init("local", include_dashboard=False, **options)


def _take_signals_back() -> None:
    """Ray's own handlers print stacks for a SIGTERM; who asks us to end is to be heard by us alone."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.getsignal(number))


def _with_absolute_paths(config: Config) -> Config:
    """What a worker on another machine is told; there it may not be."""
    certificate, key = config.c2pa_certificate, config.c2pa_private_key
    return replace(
        config,
        data_dir=config.data_dir.absolute(),
        c2pa_certificate=certificate and certificate.absolute(),
        c2pa_private_key=key and key.absolute(),
    )


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
