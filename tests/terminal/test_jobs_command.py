"""``safelight jobs`` against a real server: the list, one job, cancelling, saving; and its sentences when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safelight.commands.job_text import job_table, short_id
from safelight.terminal import Look, cells
from tests.chaos.chaos_server import ChaosServer
from tests.terminal.picture_reading import kitty_pictures
from tests.terminal.terminal_process import ROOT, SAFELIGHT, TerminalProcess

KEY = "secret-key-of-a-test"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosServer]:
    with ChaosServer(tmp_path_factory.mktemp("data"), "--queue-limit", "200", step_s=0.05) as server:
        server.wait_until_ready()
        yield server
        assert server.stop() == 0


def jobs(server: ChaosServer, *arguments: str, folder: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """As typed, without a terminal."""
    return subprocess.run(
        [*SAFELIGHT, "jobs", "--url", server.url, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | env,
    )


def test_the_list_says_where_each_job_is(server: ChaosServer) -> None:
    done = server.submit(steps=2, prompt="a finished circle")["id"]
    server.wait_for(done)
    failed = server.submit(steps=2, prompt="out of memory")["id"]
    server.wait_for(failed)
    running = server.submit(steps=200, prompt="a\nlong circle")["id"]
    server.wait_for_step(running)
    waiting = [server.submit(steps=200, width=512, prompt="写真 " * 50)["id"] for _ in range(2)]
    run = jobs(server, "--limit", "5")
    assert run.returncode == 0, run.stderr
    header, *lines = [line.split("  ") for line in run.stdout.splitlines()]
    rows = [[part.strip() for part in line if part.strip()] for line in lines]
    assert header[0] == "ID" and "PROMPT" in header[-1]
    assert [row[0] for row in rows] == [short_id(name) for name in (waiting[1], waiting[0], running, failed, done)]
    assert [row[1] for row in rows] == ["queued", "queued", "running", "failed", "succeeded"]
    assert [row[4] for row in rows[:2]] == ["1 before it", "next"]
    assert rows[2][4].endswith("/200") and rows[2][-1] == "a long circle"
    assert rows[0][3] == "512x64" and rows[0][-1].startswith("写真 写真")
    for name in (*waiting, running):
        server.post(f"/v1/predictions/{name}/cancel")


def test_the_list_as_json_is_that_of_the_job_api(server: ChaosServer) -> None:
    name = server.submit(steps=1)["id"]
    server.wait_for(name)
    (shown,) = json.loads(jobs(server, "--limit", "1", "--json").stdout)
    assert (shown["id"], shown["status"], shown["params"]["num_inference_steps"]) == (name, "succeeded", 1)


def test_more_than_a_page_of_jobs_is_listed(server: ChaosServer) -> None:
    names = [server.submit(steps=1)["id"] for _ in range(105)]
    server.wait_for(names[-1])
    listed = json.loads(jobs(server, "--limit", "105", "--json").stdout)
    assert [job["id"] for job in listed] == names[::-1]


def test_one_job_is_shown_by_the_beginning_of_its_id(server: ChaosServer) -> None:
    name = server.submit(steps=2, prompt="a red circle")["id"]
    server.wait_for(name)
    run = jobs(server, "show", short_id(name))
    facts = dict(line.split(maxsplit=1) for line in run.stdout.splitlines())
    assert (facts["id"], facts["prompt"], facts["seed"], facts["steps"]) == (name, "a red circle", "1", "2")
    assert facts["status"].startswith("succeeded, ")
    assert json.loads(jobs(server, "show", name, "--json").stdout)["id"] == name


def test_a_terminal_shows_the_picture_of_a_job(server: ChaosServer) -> None:
    name = server.submit(steps=2)["id"]
    server.wait_for(name)
    command = (*SAFELIGHT, "jobs", "show", name, "--url", server.url)
    with TerminalProcess(command, columns=120, rows=40, TERM="xterm-kitty") as run:
        assert run.wait() == 0
        ((_, shown),) = kitty_pictures(run.written)
        assert shown.size == (64, 64)


def test_cancel_ends_a_job_and_says_when_there_is_nothing_to_end(server: ChaosServer) -> None:
    name = server.submit(steps=200)["id"]
    server.wait_for_step(name)
    run = jobs(server, "cancel", short_id(name))
    assert (run.returncode, run.stdout) == (0, f"{name}: cancelled\n")
    assert server.wait_for(name)["status"] == "canceled"
    run = jobs(server, "cancel", name)
    assert (run.returncode, run.stderr) == (1, f"safelight: {name} had ended already: cancelled\n")


def test_save_writes_every_picture(server: ChaosServer, tmp_path: Path) -> None:
    name = server.submit(steps=2, num_outputs=2)["id"]
    server.wait_for(name)
    run = jobs(server, "save", name, "-o", str(tmp_path / "circle.png"))
    assert run.stdout == f"{tmp_path / 'circle.png'} (seed 1)\n{tmp_path / 'circle-2.png'} (seed 2)\n"
    assert (tmp_path / "circle.png").read_bytes() == server.picture(name, 0)
    assert (tmp_path / "circle-2.png").read_bytes() == server.picture(name, 1)
    assert jobs(server, "save", name, "-o", str(tmp_path / "no" / "x.png")).returncode == 1


def test_a_saved_picture_is_called_after_its_job(server: ChaosServer, tmp_path: Path) -> None:
    name = server.submit(steps=2, output_format="jpg")["id"]
    server.wait_for(name)
    command = [*SAFELIGHT, "jobs", "save", name, "--url", server.url]
    run = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": f"{ROOT}/src"},
    )
    assert run.stdout == f"{short_id(name)}.jpg (seed 1)\n"
    assert (tmp_path / f"{short_id(name)}.jpg").read_bytes() == server.picture(name)


def test_what_cannot_be_is_one_sentence_and_exit_code_1(server: ChaosServer) -> None:
    names = [server.submit(steps=200)["id"] for _ in range(2)]
    for arguments, sentence in (
        (("show", "nobody"), "there is no job 'nobody'"),
        (("show", "../status"), "there is nothing at /v1/predictions/../status"),
        (("cancel", "job_"), "jobs have ids that begin with 'job_'"),
        (("save", names[1]), f"{names[1]} has no pictures: it is "),
        (("--url", "http://127.0.0.1:9"), "no Safelight server answers at http://127.0.0.1:9"),
    ):
        run = jobs(server, *arguments)
        assert (run.returncode, run.stdout) == (1, "")
        assert sentence in run.stderr and run.stderr.count("\n") == 1, run.stderr
    for name in names:
        server.post(f"/v1/predictions/{name}/cancel")


def test_keys_are_sent_and_asked_for(tmp_path: Path) -> None:
    with ChaosServer(tmp_path / "data", SAFELIGHT_API_KEYS=f"me={KEY}") as server:
        run = jobs(server)
        assert run.returncode == 1 and "API key" in run.stderr
        assert jobs(server, SAFELIGHT_API_KEY=KEY).returncode == 0
        assert jobs(server, "--api-key", KEY).returncode == 0


def _job(**members: Any) -> dict[str, Any]:
    params = {"width": 1024, "height": 1024, "prompt": "a very long prompt " * 9, "num_images": 1}
    defaults = {"id": "job_" + "0" * 32, "model": "a", "status": "starting", "queue_position": 3}
    defaults |= {"eta_s": 75.0, "metrics": {}}
    return defaults | {"params": params, "created_at": "2026-01-01T00:00:00.000Z"} | members


def test_a_line_is_no_wider_than_the_terminal() -> None:
    wide = _job(params=_job()["params"] | {"prompt": "写真\x1b[2J" * 40})
    for columns in (80, 100, 200):
        lines = job_table([_job(), wide], columns, Look())
        assert max(cells(line) for line in lines) <= columns
        assert not any("\x1b" in line for line in lines)
    assert _job()["params"]["prompt"].strip() in job_table([_job()], None, Look())[1]


def test_the_model_is_shown_where_it_differs() -> None:
    alone, others = ([_job(model=name) for name in names] for names in (("a", "a"), ("a", "b")))
    assert "MODEL" not in job_table(alone, 100, Look())[0]
    heading, *rows = job_table(others, 100, Look())
    place = heading.index("MODEL")
    assert [row[place] for row in rows] == ["a", "b"]
