"""Prompts are the asker's business: not in the log, the metrics or an error, unless the operator says so."""

from __future__ import annotations

from pathlib import Path

from safelight.config import STUB_MODEL
from tests.server_process import ServerProcess

SECRET = "zanzibarian"


def test_a_prompt_is_nowhere_but_in_its_own_job(server: ServerProcess) -> None:
    """Also a long one, of which the libraries complain when they cut it off."""
    prompt = f"a red circle {SECRET} " + "and a blue square " * 60
    assert server.generate(prompt, steps=2).status_code == 200
    refused = [
        server.generate(SECRET, size="17x17"),
        server.generate(SECRET + "\0"),
        server.generate(SECRET * 4000),
        server.post("/v1/predictions", {"input": {"prompt": SECRET, "steps": -1}}),
        server.post("/sdapi/v1/txt2img", {"prompt": SECRET, "seed": "x"}),
        server.post("/v1/images/generations", {"prompt": [SECRET]}),
    ]
    for answer in refused:
        assert answer.status_code == 400
        assert SECRET not in answer.text
    assert SECRET not in server.get("/metrics").text
    assert SECRET not in server.get("/v1/status").text
    assert not [line for line in server.lines if SECRET in line]


def test_a_setting_has_them_logged(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "data", "--model", STUB_MODEL, "--log-prompts", "true") as server:
        server.wait_until_ready()
        server.generate(SECRET)
        server.logged(SECRET)
        assert server.stop() == 0
