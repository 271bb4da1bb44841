"""Prometheus metrics of one server. Never labelled by prompt, job or caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from safelight.errors import QueueFull, RateLimited, ShuttingDown, StorageFull, StorageUnavailable
from safelight.jobs import Job, JobStatus
from safelight.server.pace import Throughput

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

disable_created_metrics()  # type: ignore[no-untyped-call]  # twice the lines, for a reader that nobody has

_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
_JOBS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_REFUSALS = [kind.code for kind in (QueueFull, RateLimited, StorageFull, StorageUnavailable, ShuttingDown)]

Reading = float | Mapping[tuple[str, ...], float]
"""Of a gauge; of one that has labels, by their values."""


class Metrics:
    """Counted on the event loop and read there, so that every scrape adds up:

    ``safelight_requests_accepted_total`` is the sum of ``safelight_requests_total`` over all statuses, ``_waiting`` and
    ``_running``.
    """

    def __init__(self, gauges: Callable[[], Mapping[str, Reading]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(gauges))
        self._accepted = self._counter("requests_accepted", "Jobs accepted, or found waiting at the start.")
        self._ended = self._counter("requests", "Jobs that ended.", "status", "api")
        self.refused = self._counter("requests_refused", "Requests for jobs that were refused.", "reason")
        self.throughput = Throughput()
        self.images = self._counter("images", "Pictures made.")
        self.pixels = self._counter("pixels", "Pixels of pictures made.")
        self.fenced = self._counter("fenced_results", "Outcomes of attempts that were over, discarded.")
        self.teams = self._counter("team_jobs", "Jobs that succeeded, by how many workers made them together.", "size")
        self.retried = self._counter("requests_retried", "Attempts that ended with their worker; the job ran again.")
        self.worker_restarts = self._counter("worker_restarts", "Workers that were replaced.", "reason")
        self.model_switches = self._counter("model_switches", "Devices that went from one model to another.", "result")
        self.worker_renewals = self._counter("worker_renewals", "New processes that operators ordered.", "result")
        self.cancelled = self._counter("cancelled", "Cancelled jobs.", "reason")
        self.webhooks = self._counter("webhooks", "Last messages of jobs to their webhooks.", "result")
        self.connections = Gauge("safelight_connections", "Open HTTP connections.", registry=self.registry)
        self.connections_closed = self._counter(
            "connections_closed", "Connections closed for being late, or over the limit.", "reason"
        )
        self._duration = self._histogram("request_duration_seconds", "From accepted to ended.", "status")
        self.queue = self._histogram("queue_seconds", "From accepted to the first attempt.")
        self.stage = self._histogram("stage_seconds", "Stages of an attempt that succeeded.", "stage")
        self.step = self._histogram(
            "denoise_step_seconds", "One denoising step of all images of a job, as the front sees it."
        )
        self.batch_jobs = Histogram(
            "safelight_batch_jobs",
            "Jobs that had the device together, counted at each of those steps.",
            registry=self.registry,
            buckets=_JOBS,
        )
        self._show_zeros()

    def _show_zeros(self) -> None:
        """What happens for the first time would not be an increase, if there had been nothing before."""
        for counter, values in (
            (self.refused, _REFUSALS),
            (self.worker_restarts, ("died", "hung", "unfit")),
            (self.model_switches, ("done", "failed")),
            (self.worker_renewals, ("done", "failed")),
            (self.cancelled, ("api", "disconnect")),
            (self.teams, ("1", "2")),
            (self.webhooks, ("delivered", "failed", "given_up")),
            (self.connections_closed, ("head", "body", "write", "limit")),
        ):
            for value in values:
                counter.labels(value)

    def accepted(self, job: Job) -> None:
        """A job became waiting."""
        self._accepted.inc()
        for status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED):
            self._ended.labels(status, job.request.api)  # so that a scrape shows zeros, not gaps

    def ended(self, job: Job) -> None:
        """A job reached its last status."""
        self._ended.labels(job.status, job.request.api).inc()
        if job.finished_s is not None:
            self._duration.labels(job.status).observe(max(job.finished_s - job.created_s, 0.0))
        if job.status is JobStatus.SUCCEEDED:
            self.images.inc(job.params.num_images)
            self.throughput.add(job.params.num_images)
            self.pixels.inc(job.params.num_images * job.params.width * job.params.height)
            for stage, seconds in job.result.seconds.items():
                self.stage.labels(stage).observe(seconds)

    def page(self) -> bytes:
        """The answer of ``/metrics``."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"safelight_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"safelight_{name}", text, labels, registry=self.registry, buckets=_SECONDS)


GAUGES = {
    "ready": "1 while jobs are taken and stored: /readyz is 200.",
    "requests_waiting": "Jobs that wait.",
    "requests_running": "Jobs that a worker has.",
    "queue_limit": "Jobs that may wait.",
    "queue_oldest_seconds": "Since the oldest job that waits was accepted; 0 if none waits.",
    "queue_work": "Megapixels x steps that wait.",
    "workers": "Workers that there should be: one a device.",
    "workers_ready": "Workers that are ready or busy.",
    "worker_state": "1 for the state that a worker is in, 0 for the others.",
    "worker_jobs": "Jobs that a worker has.",
    "worker_remaining_seconds": "What the jobs that a worker has will still take, as fast as jobs were done here.",
    "load_seconds": "What the phases of a worker's last load took.",
    "device_memory_used_bytes": "What is used of a device's memory, by whomever; on a CPU by the worker.",
    "device_memory_bytes": "Memory of a device.",
    "storage_ok": "1 while the data directory can be written.",
    "uptime_seconds": "Seconds since the process began.",
    "model_requests_waiting": "Jobs that wait for a model.",
    "model_workers": "Workers that serve a model.",
    "build_info": "Always 1, for each model.",
}
LABELS = {
    "worker_state": ("worker", "device", "state"),
    "worker_jobs": ("worker", "device"),
    "worker_remaining_seconds": ("worker", "device"),
    "load_seconds": ("worker", "device", "model", "phase"),
    "device_memory_used_bytes": ("worker", "device"),
    "device_memory_bytes": ("worker", "device"),
    "model_requests_waiting": ("model",),
    "model_workers": ("model",),
    "build_info": ("version", "model"),
}


class _Gauges(Collector):
    def __init__(self, read: Callable[[], Mapping[str, Reading]]) -> None:
        self._read = read

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        values = self._read()
        for name, text in GAUGES.items():
            family = GaugeMetricFamily(f"safelight_{name}", text, labels=LABELS.get(name, ()))
            reading = values[name]
            for labels, value in reading.items() if isinstance(reading, Mapping) else [((), reading)]:
                family.add_metric(labels, value)
            yield family
