"""``/v1/models``: the list, one entry by any spelling of its id, a second try to load."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest

from safelight.server.worker_state import WorkerState
from tests.unit.running_front import make_front, running_front, serving, until, until_ready

pytestmark = pytest.mark.anyio


async def test_the_list_is_openais(tmp_path: Path, checkpoint_dir: Path) -> None:
    front = make_front(tmp_path, model=str(checkpoint_dir))
    await front.models.refresh()
    async with serving(front) as client:
        answer = (await client.get("/v1/models")).json()
        assert answer["object"] == "list"
        assert [entry["id"] for entry in answer["data"]] == ["test/tiny"]


async def test_one_model_by_its_id_plain_or_percent_encoded_and_by_its_path(
    tmp_path: Path, checkpoint_dir: Path
) -> None:
    front = make_front(tmp_path, model=str(checkpoint_dir))
    await front.models.refresh()
    async with serving(front) as client:
        for spelling in ("test/tiny", "test%2Ftiny", quote(str(checkpoint_dir), safe="")):
            answer = await client.get(f"/v1/models/{spelling}")
            assert (answer.status_code, answer.json().get("id")) == (200, "test/tiny"), spelling


@pytest.mark.parametrize("model_id", ["another", "test/tiny/", "test", "tiny", "..%2F..%2Fetc", "%00"])
async def test_another_model_is_not_found(model_id: str, tmp_path: Path, checkpoint_dir: Path) -> None:
    front = make_front(tmp_path, model=str(checkpoint_dir))
    await front.models.refresh()
    async with serving(front) as client:
        for answer in (await client.get(f"/v1/models/{model_id}"), await client.post(f"/v1/models/{model_id}/load")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
            assert answer.json()["error"]["param"] == "model"


async def test_a_model_whose_files_are_unreadable_is_listed_with_the_reason(tmp_path: Path) -> None:
    async with running_front(tmp_path, model=str(tmp_path / "nowhere")) as front, serving(front) as client:
        await until(front.changes, lambda: front.state == "failed")
        (entry,) = (await client.get("/v1/models")).json()["data"]
        assert (entry["id"], entry["state"], entry["loaded_on"]) == (str(tmp_path / "nowhere"), "failed", [])
        assert "there is no model" in entry["error"]
        assert "tasks" not in entry


async def test_a_failed_load_is_tried_again_on_request_and_shows_it(tmp_path: Path, checkpoint_dir: Path) -> None:
    async with (
        running_front(tmp_path, "fails_to_load_once", model=str(checkpoint_dir)) as front,
        serving(front) as client,
    ):
        await until(front.changes, lambda: front.workers[0].state is WorkerState.FAILED)
        answer = await client.post("/v1/models/test/tiny/load")
        assert (answer.status_code, answer.json()["status"]) == (202, "loading")
        assert answer.json()["workers"][0]["error"] is None
        await until_ready(front)
        answer = await client.post("/v1/models/test%2Ftiny/load")
        assert (answer.status_code, answer.json()["status"]) == (202, "ready")
