"""What was made stays: over a reload, over a restart of the server; it can be found again, and deleted for good."""

from __future__ import annotations

import time
from pathlib import Path

from playwright.sync_api import expect

from safelight.jobs import JobError, JobStatus
from safelight.server.database import JobDatabase
from tests.browser.conftest import Start, Visit
from tests.chaos.chaos_server import ChaosServer
from tests.unit.running_front import job


def test_history_outlives_a_reload_and_a_restart_of_the_server(start: Start, visit: Visit) -> None:
    server = start()
    with visit(server) as visitor:
        for prompt in ("the first one", "the second one", "the third one"):
            visitor.make(prompt)
        visitor.page.reload()
        expect(visitor.tiles).to_have_count(3)
        expect(visitor.job).to_have_attribute("aria-label", "the third one")
        server.kill()
        expect(visitor.by_id("connection")).to_have_text("Reconnecting…")
        expect(visitor.by_id("notice")).to_contain_text("The server cannot be reached")
        with server.restart() as again:
            again.wait_until_ready()
            expect(visitor.by_id("connection")).to_contain_text("ready")
            visitor.page.reload()
            expect(visitor.tiles).to_have_count(3)
            visitor.tile("the second one").click()
            expect(visitor.job).to_have_attribute("aria-label", "the second one")
            expect(visitor.pictures).to_be_visible()
            assert visitor.pictures.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 64
            again.end()


def test_prompts_are_searched_and_jobs_deleted_for_good(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        for prompt in ("a red fox", "a blue whale", "a RED whale"):
            visitor.make(prompt)
        search = visitor.page.get_by_role("searchbox", name="Search the prompts")
        for words, count in (("red", 2), ("red whale", 1), ("whale", 2)):
            search.fill(words)
            expect(visitor.tiles).to_have_count(count)
        search.fill("unicorn")
        expect(visitor.by_id("nothing")).to_have_text("No prompt has these words.")
        search.fill("red whale")
        visitor.tile("a RED whale").click()
        before = len(list((stub.folder / "results").iterdir()))
        visitor.button("Delete").click()
        expect(visitor.tiles).to_have_count(1)  # it asks once more
        visitor.button("Delete for good").click()
        expect(visitor.tiles).to_have_count(0)
        assert len(list((stub.folder / "results").iterdir())) == before - 1
        visitor.make("something else")  # which does not match: the search is over
        expect(search).to_have_value("")
        expect(visitor.tile("a blue whale")).to_be_visible()
        expect(visitor.tile("a RED whale")).to_have_count(0)


def test_a_long_history_comes_piece_by_piece(start: Start, visit: Visit, tmp_path: Path) -> None:
    _write_history(tmp_path / "data", count=105)
    server = start(is_ready=False)
    with visit(server) as visitor:
        expect(visitor.tiles).to_have_count(100)
        visitor.button("Older ones").click()
        expect(visitor.tiles).to_have_count(105)
        expect(visitor.button("Older ones")).to_have_count(0)


def _write_history(folder: Path, count: int) -> None:
    """Jobs of a server before this one."""
    folder.mkdir()
    database = JobDatabase(folder)
    database.migrate()
    for number in range(count):
        old = job(f"job_{number}")
        old.created_s = time.time() - 60 + number / 10
        database.add(old)
        error = JobError("internal_error", "it failed long ago")
        database.finish(old.id, old.attempt, JobStatus.QUEUED, JobStatus.FAILED, time.time(), error)
    database.close()


def test_jobs_that_come_from_elsewhere_appear_by_themselves(start: Start, visit: Visit) -> None:
    server = start(step_s=0.05)
    with visit(server) as visitor:
        expect(visitor.by_id("nothing")).to_have_text("None yet.")
        server.submit("elsewhere", steps=150, prompt="made with curl")
        expect(visitor.tile("made with curl")).to_be_visible()
