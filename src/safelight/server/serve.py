"""The front process from its listening socket to exit: answers first, loads behind it, drains on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from safelight import __version__, faults, logs
from safelight.config import Config, settings
from safelight.errors import ConfigError
from safelight.server.admission import is_loopback
from safelight.server.app import create_app
from safelight.server.cluster import Cluster
from safelight.server.connections import ConnectionGuard, ConnectionLimits
from safelight.server.console import CurrentStderr, show_progress
from safelight.server.devices import resolve_devices
from safelight.server.front import Front, again_after_defects
from safelight.server.listener import listen, url_of
from safelight.server.store import JobStore
from safelight.server.team_choice import AUTO, OFF
from safelight.tracing import NO_TRACING, Tracing

log = logging.getLogger(__name__)

_FLUSH_ANSWERS_S = 1
_ACCEPTED_AT_ONCE = 64
_SECRET_FLAGS = tuple(f"--{each.name.replace('_', '-')}" for each in settings() if each.metadata["is_secret"])
_LOG_LINE = "%(asctime)s %(levelname)s %(message)s"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: it would close the socket first and end with the signal's exit code."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """asyncio takes as many connections in one turn as may wait: few at a time, or a burst stops everything."""
        await super().startup(sockets)
        for sock in sockets or []:
            listen(sock)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(config: Config, sock: socket.socket) -> int:
    """Answers on the listening ``sock`` until a signal; returns the exit code. Raises ``ConfigError`` at once."""
    _refuse_to_be_open(config, sock)
    _check_credentials(config)
    _check_devices(config)
    tracing = _tracing(config)
    _make_data_dir(config)
    logs.configure(config.log_level, config.log_format, _LOG_LINE, CurrentStderr())
    _arm_faults(config, sock)
    with (
        contextlib.closing(tracing),
        contextlib.closing(JobStore.open(config.data_dir, recover=config.recover)) as store,
        asyncio.Runner() as runner,
        _children_without_threads(runner.get_loop()),
    ):
        return runner.run(_serve(config, sock, store, tracing, _cluster(config)))


def _refuse_to_be_open(config: Config, sock: socket.socket) -> None:
    if not (is_loopback(sock.getsockname()[0]) or config.api_keys or config.admin_keys or config.insecure):
        raise ConfigError(
            f"--host={config.host!r} can be reached from outside: set SAFELIGHT_API_KEYS=NAME=KEY, "
            "or --insecure true if anybody may ask",
            param="host",
        )


def _check_credentials(config: Config) -> None:
    files = {"c2pa_certificate": config.c2pa_certificate, "c2pa_private_key": config.c2pa_private_key}
    if not any(files.values()):
        return
    for name, file in files.items():
        if file is None or not file.is_file():
            shown = "" if file is None else str(file)
            raise ConfigError(f"--{name.replace('_', '-')}={shown!r} is no file: signing needs both", param=name)
    if importlib.util.find_spec("c2pa") is None:
        raise ConfigError("signing pictures needs the package c2pa-python: pip install 'safelight[c2pa]'")


def _check_devices(config: Config) -> None:
    if not config.cluster:
        resolve_devices(config.device, workers=config.workers)
        return
    shown = f"--cluster={config.cluster!r}"
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(f"{shown} needs Ray: pip install 'safelight[ray]'", param="cluster")
    if ":" in config.device:
        raise ConfigError(
            f"--device={config.device!r} does not go with {shown}: Ray chooses the cards; --device cuda, and --workers "
            "says how many",
            param="device",
        )
    if config.sequence_parallel not in (OFF, AUTO):
        raise ConfigError(
            f"--sequence-parallel={config.sequence_parallel!r} does not go with {shown}: workers of several "
            "machines make each picture alone",
            param="sequence_parallel",
        )
    if any(argument.startswith(_SECRET_FLAGS) for argument in sys.argv):
        raise ConfigError(
            f"{shown} shows this command line to the whole cluster: give keys as SAFELIGHT_API_KEYS and "
            "SAFELIGHT_ADMIN_KEYS",
            param="api_keys",
        )


def _cluster(config: Config) -> Cluster | None:
    """``None``: this machine. Ray is imported before there is a loop, which it would stop for half a second."""
    if not config.cluster:
        return None
    from safelight.server.ray_cluster import RayCluster

    return RayCluster(config)


def _tracing(config: Config) -> Tracing:
    if not config.otlp_endpoint:
        return NO_TRACING
    try:
        from safelight.otlp import OtlpTracing
    except ImportError:
        raise ConfigError(
            f"--otlp-endpoint={config.otlp_endpoint!r} needs OpenTelemetry: pip install 'safelight[otel]'",
            param="otlp_endpoint",
        ) from None
    try:
        return OtlpTracing(config.otlp_endpoint, {"service.version": __version__})
    except ValueError as error:
        raise ConfigError(f"traces cannot begin, a variable of OpenTelemetry's (OTEL_*) is wrong: {error}") from None


def _arm_faults(config: Config, sock: socket.socket) -> None:
    if config.faults and not is_loopback(sock.getsockname()[0]):
        raise ConfigError(f"--faults={config.faults!r} is for tests: only on a loopback address", param="faults")
    faults.arm(config.faults, config.data_dir / "faults")


def _make_data_dir(config: Config) -> None:
    try:
        config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--data-dir={str(config.data_dir)!r} cannot be made: {error.strerror}") from None
    if not os.access(config.data_dir, os.W_OK | os.X_OK):
        raise ConfigError(f"--data-dir={str(config.data_dir)!r} is not writable")


@contextlib.contextmanager
def _children_without_threads(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Python 3.11 has a thread for each child that it waits for; later ones do as here, by themselves."""
    if sys.version_info >= (3, 12):
        yield
        return
    with contextlib.suppress(AttributeError, OSError):  # not every kernel and sandbox knows it
        os.close(os.pidfd_open(os.getpid()))
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(loop)
        asyncio.set_child_watcher(watcher)
    try:
        yield
    finally:
        asyncio.set_child_watcher(None)  # type: ignore[arg-type]  # the default comes back


async def _serve(
    config: Config,
    sock: socket.socket,
    store: JobStore,
    tracing: Tracing = NO_TRACING,
    cluster: Cluster | None = None,
) -> int:
    front = Front(config, store, tracing=tracing, cluster=cluster)
    limits = ConnectionLimits(
        config.max_connections, config.head_timeout_s, config.body_timeout_s, config.write_timeout_s
    )
    guard = ConnectionGuard(limits, front.metrics)
    server = _Server(
        uvicorn.Config(
            create_app(front),
            http=guard.protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            server_header=False,
            backlog=_ACCEPTED_AT_ONCE,
            log_config=None,
            log_level="warning",
            timeout_graceful_shutdown=_FLUSH_ANSWERS_S,
        )
    )
    signals = _Signals()
    http = asyncio.create_task(server.serve(sockets=[sock]), name="http")
    sweep = asyncio.create_task(again_after_defects(guard.sweep, "sweep connections"))
    await front.start()
    console = asyncio.create_task(show_progress(front, url_of(sock)), name="console")
    await asyncio.wait({http, asyncio.create_task(signals.first.wait())}, return_when=asyncio.FIRST_COMPLETED)
    guard.begin_drain()
    await _drain(front, signals)
    server.should_exit = True
    await http
    for task in (sweep, console):
        task.cancel()
    log.info("stopped")
    return 0


async def _drain(front: Front, signals: _Signals) -> None:
    log.info("draining: running jobs have %.0f s; a second signal stops at once", front.config.grace_period_s)
    front.begin_drain()
    drain = asyncio.create_task(_drain_in_time(front))
    again = asyncio.create_task(signals.second.wait())
    await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not drain.done():
        drain.cancel()
        await front.stop()


async def _drain_in_time(front: Front) -> None:
    """Not before the drain delay is over: until a balancer has noticed, requests still come and want an answer."""
    await asyncio.gather(front.drain(), asyncio.sleep(front.config.drain_delay_s))


class _Signals:
    """SIGTERM and SIGINT, counted: the first asks, the second insists, more change nothing."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
