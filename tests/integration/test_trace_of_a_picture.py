"""The same trace with a real model: its text, its denoising steps and its VAE, as the collector gets them."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.collector import Collector
from tests.server_process import ServerProcess

TRACE, CLIENT_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PATH = "/v1/images/generations"


def test_a_real_models_steps_are_spans_within_the_clients_trace(tmp_path: Path) -> None:
    with (
        Collector() as collector,
        ServerProcess(tmp_path, "--device", "cpu", "--otlp-endpoint", collector.url) as server,
    ):
        server.wait_until_ready()
        body = {"prompt": "prompt-marker", "num_inference_steps": 3, "n": 2}
        headers = {"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}
        assert server.http.post(PATH, json=body, headers=headers).status_code == 200
        spans = collector.wait_for_names("encode image", "store", f"POST {PATH}")
        assert server.stop() == 0
    assert {span.trace_id for span in spans} == {TRACE}
    by_name = {name: [span for span in spans if span.name == name] for name in {span.name for span in spans}}
    (request,), (attempt,), (denoise,) = by_name[f"POST {PATH}"], by_name["attempt"], by_name["denoise"]
    assert request.parent_id == CLIENT_SPAN and attempt.parent_id == request.id and request.holds(attempt)
    for name in ("encode text", "denoise", "decode", "encode image"):
        (stage,) = by_name[name]
        assert stage.parent_id == attempt.id and attempt.holds(stage) and stage.end_ns > stage.begin_ns, name
    steps = by_name["step"]
    assert all(step.parent_id == denoise.id and denoise.holds(step) and step.end_ns > step.begin_ns for step in steps)
    assert all(before.end_ns <= after.begin_ns for before, after in itertools.pairwise(steps))
    assert sum(step.attributes["safelight.step.images"] for step in steps) == 6
    assert b"prompt-marker" not in b"".join(collector.bodies)
