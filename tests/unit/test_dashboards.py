"""The dashboard and the alerts in ``deploy/`` ask for metrics that a real server really has."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from safelight.config import STUB_MODEL
from scripts import grafana_dashboard
from tests.server_process import ROOT, ServerProcess

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
DASHBOARD: dict[str, Any] = json.loads(grafana_dashboard.FILE.read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
RECORDED = {rule["record"]: rule["expr"] for group in GROUPS for rule in group["rules"] if "record" in rule}
OF_PROMETHEUS = {"job", "instance"}
"""Labels that every scraped series has."""

Series = dict[str, list[dict[str, str]]]
"""The labels of each sample, by its name."""


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Series:
    """What a server has once a job succeeded, one failed, one was cancelled and a worker was lost."""
    environment = {"STUB_STEP_S": "0.02", "STUB_LOAD_S": "0"}
    with ServerProcess(tmp_path_factory.mktemp("data"), "--model", STUB_MODEL, environment=environment) as server:
        server.wait_until_ready()
        assert server.generate(num_inference_steps=2).status_code == 200
        assert server.generate("out of memory").status_code == 500
        body = {"input": {"prompt": "a", "num_inference_steps": 100}}
        job = server.http.post("/v1/predictions", json=body).json()
        server.wait_until(lambda status: any(running["step"] for running in status["workers"][0]["jobs"]))
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        server.wait_until(lambda status: status["workers"][0]["restarts"] == 1)
        server.post(f"/v1/predictions/{job['id']}/cancel")
        server.wait_until(lambda status: not any(status["queue"][name] for name in ("waiting", "running")))
        server.wait_until_ready()
        page = server.get("/metrics").text
        assert server.stop() == 0
    found: Series = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """All of them, each with where it stands."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"panel {panel['title']} {target['refId']}", target["expr"].replace("$__rate_interval", "5m")
    for rule in (rule for group in GROUPS for rule in group["rules"]):
        yield f"rule {rule.get('alert') or rule['record']}", rule["expr"]


def nodes(expression: str) -> list[Any]:
    """Of the parsed expression, all."""
    found: list[Any] = []
    promql_parser.walk(promql_parser.parse(expression), lambda node: found.append(node))
    return found


def selectors(expression: str) -> list[Any]:
    """What it reads."""
    found = nodes(expression)
    inner = [node.vector_selector for node in found if isinstance(node, promql_parser.MatrixSelector)]
    return inner + [node for node in found if isinstance(node, promql_parser.VectorSelector)]


@pytest.mark.parametrize(("place", "expression"), list(expressions()), ids=[place for place, _ in expressions()])
def test_every_metric_and_label_that_is_asked_for_exists(series: Series, place: str, expression: str) -> None:
    known: set[str] = set(OF_PROMETHEUS)
    for selector in selectors(expression):
        if selector.name == "up":
            continue
        if selector.name in RECORDED:
            test_every_metric_and_label_that_is_asked_for_exists(series, place, RECORDED[selector.name])
            continue
        assert selector.name in series, f"{place}: {selector.name}"
        samples = series[selector.name]
        names = set(samples[0]) | OF_PROMETHEUS
        known |= names
        for matcher in selector.matchers.matchers:
            assert matcher.name in names, f"{place}: {selector.name} has no label {matcher.name}"
            if matcher.name not in OF_PROMETHEUS:
                values = {labels[matcher.name] for labels in samples}
                assert matcher.value in values, f"{place}: {matcher.name} is never {matcher.value}"
    for node in nodes(expression):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            assert set(node.modifier.labels) <= known, place


def test_the_parser_would_find_a_metric_that_is_misspelt(series: Series) -> None:
    for wrong in ("rate(safelight_image_total[5m])", 'safelight_webhooks_total{kind="x"}', "sum by (kind) (up)"):
        with pytest.raises(AssertionError):
            test_every_metric_and_label_that_is_asked_for_exists(series, "here", wrong)


def test_legends_name_labels_that_their_query_returns(series: Series) -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"].replace("$__rate_interval", "5m")
            grouped = [
                n.modifier for n in nodes(expression) if isinstance(n, promql_parser.AggregateExpr) and n.modifier
            ]
            kept = {label for modifier in grouped for label in modifier.labels}
            if not any(isinstance(node, promql_parser.AggregateExpr) for node in nodes(expression)):
                kept = {label for each in selectors(expression) for label in series[each.name][0]} | OF_PROMETHEUS
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept, panel["title"]


def test_every_metric_of_the_server_is_shown_or_left_out_for_a_reason(series: Series) -> None:
    shown = {each.name for panel in PANELS for target in panel["targets"] for each in _selectors_of(target)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in series}
    missing = {name for name in families if not shown & {name, f"{name}_bucket", f"{name}_sum", f"{name}_count"}}
    assert missing == set(grafana_dashboard.ABSENT)


def _selectors_of(target: dict[str, Any]) -> list[Any]:
    return selectors(target["expr"].replace("$__rate_interval", "5m"))


def test_the_dashboard_is_what_its_table_says() -> None:
    assert grafana_dashboard.FILE.read_text() == grafana_dashboard.written(), "python -m scripts.grafana_dashboard"


def test_the_dashboard_can_be_imported() -> None:
    assert {"uid", "title", "schemaVersion", "time", "templating", "panels"} <= DASHBOARD.keys()
    assert DASHBOARD["schemaVersion"] >= 36 and "id" not in DASHBOARD  # an id would overwrite another one
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert {"stat", "timeseries", "bargauge", "state-timeline"} >= {panel["type"] for panel in PANELS}
    for panel in PANELS:
        references = [target["refId"] for target in panel["targets"]]
        assert panel["title"] and len(set(references)) == len(references) > 0


def test_no_panel_covers_another_or_leaves_the_page() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


def test_the_data_source_and_the_servers_are_chosen_not_written_down() -> None:
    chosen = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert chosen == {"datasource": "datasource", "job": "query", "instance": "query"}
    sources = re.findall(r'"uid": "([^"]*)"', json.dumps(DASHBOARD["panels"] + DASHBOARD["templating"]["list"]))
    assert set(sources) == {"${datasource}"}
    for panel in PANELS:
        for target in panel["targets"]:
            for selector in _selectors_of(target):
                matched = {matcher.name: matcher.value for matcher in selector.matchers.matchers}
                assert (matched["job"], matched["instance"]) == ("$job", "$instance"), panel["title"]


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_what_to_look_at(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert "{{ $labels.instance }}" in alert["annotations"]["summary"] and alert["annotations"]["description"]
    page = (ROOT / "docs" / "observability.md").read_text()
    row = next((line for line in page.splitlines() if line.startswith(f"| `{alert['alert']}` ")), "")
    assert f"| {alert['labels']['severity']} |" in row


def test_the_alerts_page_has_no_others() -> None:
    page = (ROOT / "docs" / "observability.md").read_text()
    assert re.findall(r"^\| `(Safelight\w+)` ", page, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")
@pytest.mark.parametrize(
    "arguments", ["check rules alerts.yml", "check config prometheus.yml", "test rules alerts_test.yml"]
)
def test_prometheus_itself_takes_the_rules_and_they_fire_when_they_should(arguments: str) -> None:
    ended = subprocess.run(
        ["promtool", *arguments.split()], cwd=RULES.parent, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_every_alert_is_tested() -> None:
    text = Path(RULES.parent / "alerts_test.yml").read_text()
    for alert in ALERTS:
        assert alert["alert"] in text, alert["alert"]
