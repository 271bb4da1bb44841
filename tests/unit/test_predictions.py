"""The job API over the real server: Replicate's shapes, waiting, names of one's own, cancelling, whose job it is."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from safelight.jobs import JobStatus
from safelight.server import loader as loader_module
from safelight.server import predictions as predictions_module
from tests.unit.running_front import TIMEOUT_S, running_front, serving, until, until_ready

pytestmark = pytest.mark.anyio

URL = "/v1/predictions"
BODY: dict[str, Any] = {"input": {"prompt": "a red circle", "seed": 5}}
TQDM = re.compile(r"^\s*(\d+)%\s*\|.+?\|\s*(\d+)\/(\d+)")
"""As Replicate's SDKs read a log."""


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "BACK_OFF_S", (0.0, 0.01))


async def _until_terminal(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            shown: dict[str, Any] = (await client.get(url)).json()
            if shown["status"] not in ("starting", "processing"):
                return shown
            await asyncio.sleep(0.01)


async def test_a_job_is_created_followed_and_its_picture_fetched(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        answer = await client.post(URL, json=BODY)
        created = answer.json()
        assert (answer.status_code, created["status"], created["output"]) == (201, "starting", None)
        assert answer.headers["location"] == created["urls"]["get"]
        done = await _until_terminal(client, created["urls"]["get"])
        assert (done["status"], done["input"], done["seed"], done["error"]) == ("succeeded", BODY["input"], 5, None)
        assert done["id"] == created["id"]
        picture = await client.get(done["output"][0])
        assert (picture.content, picture.headers["content-type"]) == (b"a red circle 5", "image/png")
        assert set(done["metrics"]) == {"queue_time", "predict_time"}
        assert done["created_at"] <= done["started_at"] <= done["completed_at"]
        for missing in ("output/1", "output/-1", "output/x"):
            assert (await client.get(f"{created['urls']['get']}/{missing}")).status_code in (400, 404)


async def test_prefer_wait_answers_with_the_end(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        body = {"input": BODY["input"] | {"num_outputs": 2, "output_format": "jpg"}}
        answer = await client.post(URL, json=body, headers={"prefer": "wait=20"})
        assert (answer.status_code, answer.json()["status"]) == (201, "succeeded")
        assert answer.headers["preference-applied"] == "wait=20"
        found = TQDM.match(answer.json()["logs"])
        assert found is not None and found.groups() == ("100", "8", "8")
        pictures = [(await client.get(url)).content for url in answer.json()["output"]]
        assert pictures == [b"a red circle 5", b"a red circle 6"]


async def test_a_wait_that_is_over_says_starting_since_sdks_poll_on_from_that_only(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with (
        running_front(tmp_path, "never_finishes_a_step", model=str(checkpoint_dir)) as front,
        serving(front) as client,
    ):
        answer = await client.post(URL, json=BODY, headers={"prefer": "wait=1"})
        assert (answer.status_code, answer.json()["status"]) == (201, "starting")
        shown = (await client.get(answer.json()["urls"]["get"])).json()
        assert (shown["status"], shown["progress"]) == ("processing", {"step": 1, "total": 4, "preview_url": None})
        found = TQDM.match(shown["logs"])
        assert found is not None and found.groups() == ("25", "1", "4")


@pytest.mark.parametrize("behaviour", ["never_finishes_loading", "fails_to_load"])
async def test_an_accepted_job_that_nobody_works_on_now_is_no_error(
    behaviour: str, tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, behaviour, model=str(checkpoint_dir)) as front, serving(front) as client:
        asking = asyncio.create_task(client.post(URL, json=BODY, headers={"prefer": "wait=20"}))
        await until(front.changes, lambda: front.ledger.count(JobStatus.QUEUED) == 1)
        if behaviour == "never_finishes_loading":
            await front.drain()
        answer = await asking
        assert (answer.status_code, answer.json()["status"]) == (201, "starting")
        assert front.ledger.count(JobStatus.QUEUED) == 1


async def test_respond_async_is_a_202(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        answer = await client.post(URL, json=BODY, headers={"prefer": "respond-async"})
        assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")


async def test_a_waiting_job_has_a_position_and_an_eta(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front, serving(front) as client:
        await client.post(URL, json=BODY, headers={"prefer": "wait"})
        long = {"input": BODY["input"] | {"num_inference_steps": 50}}
        for _ in range(3):
            last = (await client.post(URL, json=long)).json()
        await until(front.changes, lambda: front.ledger.count(JobStatus.RUNNING) == 1)
        shown = (await client.get(last["urls"]["get"])).json()
        assert shown["queue_position"] == 1
        assert 2 < shown["eta_s"] < 60


async def test_the_model_may_be_named_in_the_path_or_the_body(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        assert (await client.post("/v1/models/test/tiny/predictions", json=BODY)).status_code == 201
        assert (await client.post(URL, json=BODY | {"version": "test/tiny"})).status_code == 201
        for path, body in (("/v1/models/other/one/predictions", BODY), (URL, BODY | {"version": "other"})):
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, (64, 64)),
        ({"aspect_ratio": "1:1"}, (64, 64)),
        ({"aspect_ratio": "4:1"}, (128, 32)),
        ({"aspect_ratio": "16:9"}, (80, 48)),
        ({"aspect_ratio": "16:9", "width": 96, "height": 112}, (96, 112)),
        ({"megapixels": "0.25"}, (512, 512)),
    ],
)
async def test_sizes(given: dict[str, Any], size: tuple[int, int], tmp_path: Path, checkpoint_dir: Path) -> None:
    async with (
        running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir)) as front,
        serving(front) as client,
    ):
        answer = await client.post(URL, json={"input": BODY["input"] | given})
        assert answer.status_code == 201, answer.text
        (waiting,) = front.ledger
        assert (waiting.params.width, waiting.params.height) == size


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "input"),
        ({"input": {}}, "missing_required_parameter", "input.prompt"),
        ({"input": {"prompt": "a", "picture": "data:"}}, "unknown_parameter", "input.picture"),
        ({"input": {"prompt": "a", "aspect_ratio": "wide"}}, "invalid_value", "input.aspect_ratio"),
        ({"input": {"prompt": "a", "aspect_ratio": "99:1"}}, "invalid_size", "height"),
        ({"input": {"prompt": "a", "num_outputs": 0}}, "invalid_value", "input.num_outputs"),
        ({"input": {"prompt": "a"}, "webhook": "example.org"}, "invalid_value", "webhook"),
        ({"input": {"prompt": "a"}, "webhook_events_filter": ["end"]}, "invalid_value", "webhook_events_filter.0"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    body: dict[str, Any], code: str, param: str, tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        answer = await client.post(URL, json=body)
        found = answer.json()["error"]
        assert (answer.status_code, found["code"], found["param"]) == (400, code, param)
        assert front.ledger.count(JobStatus.QUEUED) == 0


@pytest.mark.parametrize(
    ("header", "value"),
    [("prefer", "wait=soon"), ("x-on-disconnect", "maybe"), ("x-priority", "11"), ("idempotency-key", "x" * 300)],
)
async def test_a_header_that_makes_no_sense_is_refused(
    header: str, value: str, tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        answer = await client.post(URL, json=BODY, headers={header: value})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


# --- names of one's own -------------------------------------------------------------------------------------------


async def test_a_put_is_the_same_job_however_often_it_is_sent(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        answers = await asyncio.gather(*(client.put(f"{URL}/mine", json=BODY) for _ in range(5)))
        assert {answer.json()["id"] for answer in answers} == {"mine"}
        assert {answer.status_code for answer in answers} <= {200, 201}
        done = await _until_terminal(client, f"{URL}/mine")
        assert (await client.get(done["output"][0])).content == b"a red circle 5"
        again = await client.put(f"{URL}/mine", json=BODY)
        assert (again.status_code, again.json()["status"]) == (200, "succeeded")
        other = await client.put(f"{URL}/mine", json={"input": {"prompt": "another"}})
        assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
        assert (await client.put(f"{URL}/mine", json=BODY | {"id": "yours"})).status_code == 400
        assert len((await client.get(URL)).json()["results"]) == 1


async def test_an_idempotency_key_holds_for_images_too(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        headers = {"idempotency-key": "once"}
        answers = [
            await client.post(
                "/v1/images/generations", content=content, headers=headers | {"content-type": "application/json"}
            )
            for content in (b'{"prompt": "a", "n": 1}', b'{"n":1,"prompt":"a"}')
        ]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json() == answers[1].json()
        other = await client.post("/v1/images/generations", json={"prompt": "b"}, headers=headers)
        assert (other.status_code, other.headers["x-should-retry"]) == (422, "false")
        assert (await client.post(URL, json=BODY, headers=headers)).status_code == 422


# --- whose job it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["Bearer {}", "Token {}", "Key {}"])
async def test_a_job_does_not_exist_for_others(header: str, tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        mine = {"authorization": header.format("mine")}
        created = (await client.post(URL, json=BODY, headers=mine | {"prefer": "wait"})).json()
        for other in ({}, {"authorization": "Bearer yours"}, {"x-key": "yours"}):
            for method, path in (("GET", ""), ("POST", "/cancel"), ("GET", "/output/0")):
                answer = await client.request(method, f"{URL}/{created['id']}{path}", headers=other)
                unknown = await client.request(method, f"{URL}/{'job_' + '0' * 32}{path}", headers=other)
                assert answer.status_code == unknown.status_code == 404
            assert (await client.get(URL, headers=other)).json()["results"] == []
        assert (await client.get(f"{URL}/{created['id']}", headers=mine)).status_code == 200
        assert "mine" not in str(front.store._database._connection.execute("SELECT * FROM jobs").fetchall())


# --- cancel -------------------------------------------------------------------------------------------------------


async def test_cancelling_is_final_and_can_be_repeated(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front, serving(front) as client:
        long = {"input": BODY["input"] | {"num_inference_steps": 50}}
        running, waiting = [(await client.post(URL, json=long)).json() for _ in range(2)]
        await until(front.changes, lambda: front.ledger.count(JobStatus.RUNNING) == 1)
        for created in (waiting, running):
            for _ in range(3):
                answer = await client.post(created["urls"]["cancel"])
                assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
        done = (await client.post(URL, json=BODY, headers={"prefer": "wait"})).json()
        assert (await client.post(done["urls"]["cancel"])).json()["status"] == "succeeded"
        assert (await client.post(f"{URL}/job_nobody/cancel")).status_code == 404


async def test_a_client_that_leaves_keeps_its_job_unless_it_says_otherwise(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front, serving(front) as client:
        await until_ready(front)
        for policy, path, status in (
            (None, URL, "succeeded"),
            ("cancel", URL, "canceled"),
            ("keep", "/v1/images/generations", "succeeded"),
            (None, "/v1/images/generations", "canceled"),
        ):
            body = {"prompt": f"{policy}", "steps": 6}
            headers = {"prefer": "wait"} | ({"x-on-disconnect": policy} if policy else {})
            asking = asyncio.create_task(
                client.post(path, json={"input": body} if path == URL else body, headers=headers)
            )
            await until(front.changes, lambda: any(job.step for job in front.ledger))
            (job,) = front.ledger
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            done = await _until_terminal(client, f"{URL}/{job.id}")
            assert done["status"] == status, (policy, path)


async def test_the_list_goes_on_where_the_page_ends(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with (
        running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir), queue_limit=200) as front,
        serving(front) as client,
    ):
        await asyncio.gather(*(client.post(URL, json=BODY) for _ in range(130)))
        first = (await client.get(URL)).json()
        second = (await client.get(first["next"])).json()
        assert (len(first["results"]), len(second["results"]), second["next"]) == (100, 30, None)
        assert len({shown["id"] for shown in first["results"] + second["results"]}) == 130
        assert (await client.get(f"{URL}?cursor=nonsense")).status_code == 404


# --- search and delete --------------------------------------------------------------------------------------------


async def test_the_list_can_be_searched_page_by_page(
    tmp_path: Path, checkpoint_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions_module, "_PAGE_COUNT", 2)
    async with (
        running_front(tmp_path, "never_finishes_loading", model=str(checkpoint_dir)) as front,
        serving(front) as client,
    ):
        for number in range(6):
            prompt = f"{'a red & round' if number % 2 else 'a blue'} thing {number}"
            await client.post(URL, json={"input": {"prompt": prompt}})
        seen, url = [], f"{URL}?search=RED%20%26"
        while url:
            page = (await client.get(url)).json()
            seen += [shown["input"]["prompt"][-1] for shown in page["results"]]
            url = page["next"]
        assert seen == ["5", "3", "1"]
        assert (await client.get(f"{URL}?search=green")).json()["results"] == []
        assert (await client.get(f"{URL}?search={'x' * 201}")).status_code == 400


async def test_a_deleted_job_is_gone_for_good_with_its_pictures_and_its_name(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        mine, wait = {"x-key": "mine"}, {"prefer": "wait"}
        done = (await client.put(f"{URL}/mine", json=BODY, headers=mine | wait)).json()
        for other in ({}, {"x-key": "yours"}):
            assert (await client.delete(f"{URL}/mine", headers=other)).status_code == 404
        assert (await client.get(done["output"][0])).status_code == 200
        answer = await client.delete(f"{URL}/mine", headers=mine)
        assert (answer.status_code, answer.content) == (204, b"")
        for method, url in (("GET", f"{URL}/mine"), ("GET", done["output"][0]), ("DELETE", f"{URL}/mine")):
            assert (await client.request(method, url, headers=mine)).status_code == 404
        assert (await client.get(URL, headers=mine)).json()["results"] == []
        assert list((front.config.data_dir / "results").iterdir()) == []
        again = (await client.put(f"{URL}/mine", json=BODY, headers=mine | wait)).json()
        assert (again["status"], again["created_at"] > done["created_at"]) == ("succeeded", True)


async def test_a_job_that_has_not_ended_cannot_be_deleted(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, "has_slow_steps", model=str(checkpoint_dir)) as front, serving(front) as client:
        long = {"input": BODY["input"] | {"num_inference_steps": 50}}
        running, waiting = [(await client.post(URL, json=long)).json()["urls"] for _ in range(2)]
        await until(front.changes, lambda: front.ledger.count(JobStatus.RUNNING) == 1)
        for urls in (running, waiting):
            refused = await client.delete(urls["get"])
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "job_not_finished")
            assert (await client.post(urls["cancel"])).json()["status"] == "canceled"
            assert (await client.delete(urls["get"])).status_code == 204


async def test_jobs_of_every_api_tell_what_they_were_drawn_with(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with running_front(tmp_path, model=str(checkpoint_dir)) as front, serving(front) as client:
        await client.post("/v1/images/generations", json={"prompt": "a star", "steps": 3, "seed": 9})
        (shown,) = (await client.get(URL)).json()["results"]
        params = shown["params"]
        assert (params["prompt"], params["num_inference_steps"], params["seed"]) == ("a star", 3, 9)
        assert (params["width"], params["num_images"], params["output_format"]) == (64, 1, "png")
