"""``deploy/grafana/safelight.json``, made from the table of panels below: ``python -m scripts.grafana_dashboard``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = Path(__file__).parents[1] / "deploy" / "grafana" / "safelight.json"

ABSENT = {
    "safelight_queue_limit": "a line of the panel on the queue would flatten the others; the alert on it has it",
}
"""Metrics that no panel shows, with the reason."""

_COLUMNS = 24
_SELECTOR = '{job=~"$job", instance=~"$instance"}'
_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Panel:
    """Expressions by their legends. In them ``@`` stands for the chosen servers, ``$__rate_interval`` is Grafana's."""

    title: str
    expressions: Mapping[str, str]
    kind: str = "timeseries"
    unit: str = "short"
    width: int = 8
    help: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    mappings: Sequence[Mapping[str, Any]] = ()
    is_stacked: bool = False


def _rate(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({metric}@[$__rate_interval]))"


def _quantile(quantile: float, histogram: str) -> str:
    return f"histogram_quantile({quantile}, {_rate(f'{histogram}_bucket', 'le')})"


def _increase(metric: str, by: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (increase({metric}@[$__rate_interval]))"


def _mean(histogram: str, by: str = "") -> str:
    return f"{_rate(f'{histogram}_sum', by)} / {_rate(f'{histogram}_count', by)}"


def _quantiles(histogram: str) -> dict[str, str]:
    return {f"p{quantile * 100:.0f}": _quantile(quantile, histogram) for quantile in (0.5, 0.95, 0.99)}


def _words(*words: tuple[str, str, str]) -> list[dict[str, Any]]:
    """Values as words in a colour."""
    return [
        {"type": "value", "options": {value: {"text": text, "color": color, "index": index}}}
        for index, (value, text, color) in enumerate(words)
    ]


_YES_NO = _words(("1", "yes", "green"), ("0", "no", "red"))

ROWS: dict[str, list[Panel]] = {
    "Now": [
        Panel("Takes jobs", {"{{instance}}": "safelight_ready@"}, "stat", width=4, mappings=_YES_NO),
        Panel("Can write", {"{{instance}}": "safelight_storage_ok@"}, "stat", width=4, mappings=_YES_NO),
        Panel(
            "Workers ready",
            {"ready": "sum(safelight_workers_ready@)", "of": "sum(safelight_workers@)"},
            "stat",
            width=4,
        ),
        Panel("Waiting", {"": "sum(safelight_requests_waiting@)"}, "stat", width=3),
        Panel("Running", {"": "sum(safelight_requests_running@)"}, "stat", width=3),
        Panel("Up for", {"{{instance}}": "safelight_uptime_seconds@"}, "stat", "s", 3),
        Panel(
            "Version",
            {"{{version}} · {{model}}": "safelight_build_info@"},
            "stat",
            width=3,
            options={"textMode": "name"},
        ),
    ],
    "Requests": [
        Panel(
            "Jobs that ended",
            {"{{status}}": _rate("safelight_requests_total", "status")},
            unit="reqps",
            is_stacked=True,
        ),
        Panel("Jobs accepted", {"accepted": _rate("safelight_requests_accepted_total")}, unit="reqps"),
        Panel("Refused", {"{{reason}}": _rate("safelight_requests_refused_total", "reason")}, unit="reqps"),
        Panel("Jobs by API", {"{{api}}": _rate("safelight_requests_total", "api")}, unit="reqps", is_stacked=True),
        Panel("Cancelled", {"{{reason}}": _rate("safelight_cancelled_total", "reason")}, unit="reqps"),
        Panel("Webhooks", {"{{result}}": _rate("safelight_webhooks_total", "result")}, unit="reqps"),
    ],
    "Time": [
        Panel(
            "From accepted to ended",
            _quantiles("safelight_request_duration_seconds"),
            unit="s",
            help="Of jobs that ended in whatever way.",
        ),
        Panel("Wait before the first attempt", _quantiles("safelight_queue_seconds"), unit="s"),
        Panel(
            "Age of the oldest waiting job",
            {"{{instance}}": "safelight_queue_oldest_seconds@"},
            unit="s",
        ),
        Panel("Stages, on average", {"{{stage}}": _mean("safelight_stage_seconds", "stage")}, unit="s", width=12),
        Panel(
            "Queue",
            {
                "waiting": "sum(safelight_requests_waiting@)",
                "running": "sum(safelight_requests_running@)",
                "megapixels x steps": "sum(safelight_queue_work@)",
            },
            width=12,
        ),
    ],
    "Device": [
        Panel(
            "One denoising step",
            {"mean": _mean("safelight_denoise_step_seconds"), "p95": _quantile(0.95, "safelight_denoise_step_seconds")},
            unit="s",
            help="Larger pictures and fuller batches take longer.",
        ),
        Panel(
            "Jobs that share a step",
            {"mean": _mean("safelight_batch_jobs")},
            help="1 means that jobs come one at a time, or that their sizes differ.",
        ),
        Panel(
            "Workers that make a job together",
            {"jobs a minute by {{size}}": f"60 * {_rate('safelight_team_jobs_total', 'size')}"},
            help="Two and more while no job waits.",
        ),
        Panel(
            "Pictures a minute",
            {"pictures": f"60 * {_rate('safelight_images_total')}"},
        ),
        Panel("Pixels a second", {"pixels": _rate("safelight_pixels_total")}),
        Panel(
            "Last load",
            {"{{instance}} worker {{worker}} {{model}} {{phase}}": "safelight_load_seconds@"},
            "bargauge",
            "s",
            options={"orientation": "horizontal"},
        ),
        Panel(
            "Device memory",
            {
                "{{instance}} {{device}} used": "safelight_device_memory_used_bytes@",
                "{{instance}} {{device}} of": "safelight_device_memory_bytes@",
            },
            unit="bytes",
        ),
    ],
    "Workers": [
        Panel(
            "State",
            {"{{instance}} worker {{worker}} ({{device}}) {{state}}": "safelight_worker_state@ == 1"},
            "state-timeline",
            width=24,
            mappings=_words(("1", " ", "green")),
        ),
        Panel(
            "Replaced",
            {
                "{{reason}}": _increase("safelight_worker_restarts_total", "reason"),
                "ordered: {{result}}": _increase("safelight_worker_renewals_total", "result"),
            },
            help="By why they ended, and on an operator's order.",
        ),
        Panel(
            "Attempts that lost their worker",
            {
                "ran again": _increase("safelight_requests_retried_total"),
                "came too late": _increase("safelight_fenced_results_total"),
            },
        ),
        Panel("Jobs", {"{{instance}} worker {{worker}} ({{device}})": "safelight_worker_jobs@"}, width=12),
        Panel(
            "What is left to do",
            {"{{instance}} worker {{worker}} ({{device}})": "safelight_worker_remaining_seconds@"},
            unit="s",
            width=12,
        ),
        Panel(
            "Jobs that wait for a model",
            {"{{model}}": "sum by (model) (safelight_model_requests_waiting@)"},
            is_stacked=True,
            width=12,
        ),
        Panel("Workers that have a model", {"{{model}}": "sum by (model) (safelight_model_workers@)"}, width=6),
        Panel(
            "Switched models",
            {"{{result}}": _increase("safelight_model_switches_total", "result")},
            help="Devices that went from one model to another, or could not.",
            width=6,
        ),
        Panel(
            "Connections",
            {
                "open": "sum(safelight_connections@)",
                "closed: {{reason}}": _increase("safelight_connections_closed_total", "reason"),
            },
        ),
    ],
}


def dashboard() -> dict[str, Any]:
    """As Grafana exports one; the data source and the servers are chosen above its panels."""
    return {
        "uid": "safelight",
        "title": "Safelight",
        "description": "A FLUX image server: what it is asked, how long that takes, and how its workers are.",
        "tags": ["safelight"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_datasource(), _variable("job", ""), _variable("instance", '{job=~"$job"}')]},
        "panels": list(_panels()),
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "hide": 0}


def _variable(label: str, within: str) -> dict[str, Any]:
    query = f"label_values(safelight_uptime_seconds{within}, {label})"
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": label},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "hide": 0,
    }


def _panels() -> Iterator[dict[str, Any]]:
    """Rows of panels, each left of the next until a line is full."""
    number, y = 0, 0
    for title, panels in ROWS.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "panels": [],
            "gridPos": _place(0, y, 24, 1),
        }
        x, y = 0, y + 1
        height = 4 if all(panel.kind == "stat" for panel in panels) else 8
        for panel in panels:
            if x + panel.width > _COLUMNS:
                x, y = 0, y + height
            number += 1
            yield _panel(number, panel, _place(x, y, panel.width, height))
            x += panel.width
        y += height


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    custom: dict[str, Any] = {}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.is_stacked else "none"}
        custom = {
            "fillOpacity": 20 if panel.is_stacked else 8,
            "lineWidth": 2,
            "showPoints": "never",
            "stacking": stacking,
        }
    defaults = {"unit": panel.unit, "min": 0, "mappings": list(panel.mappings), "custom": custom}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.help,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": dict(panel.options),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": _DATASOURCE,
                "editorMode": "code",
                "expr": expression.replace("@", _SELECTOR),
                "legendFormat": legend or panel.title,
                "range": True,
            }
            for index, (legend, expression) in enumerate(panel.expressions.items())
        ],
    }


def written() -> str:
    """The file as it should be."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(written(), encoding="utf-8")
