"""A server with two workers: the status view gives one or all of them new processes, and says how far that is."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Start, Visit


def test_workers_are_restarted_from_the_status_view(start: Start, visit: Visit) -> None:
    server = start("--device", "cpu", "--workers", "2", "--switch-overlap", "never", STUB_LOAD_S="0.5")
    server.poll(lambda: server.metric("workers_ready") == 2)
    before = server.worker_pids()
    with visit(server) as visitor:
        visitor.page.goto(f"{visitor.url}#/status")
        expect(visitor.by_id("worker")).to_have_count(2)
        expect(visitor.by_id("rollout")).to_have_count(0)
        visitor.page.get_by_role("button", name="Restart worker 1").click()
        expect(visitor.by_id("rollout")).to_have_text("1 with a new process")
        assert len(set(before) & set(server.worker_pids())) == 1
        visitor.record("[data-testid=rollout]")
        visitor.page.get_by_role("button", name="Restart all").click()
        expect(visitor.by_id("rollout")).to_have_text("2 with a new process")
        assert "worker 0 gets a new process, 1 to come" in visitor.recorded()
        assert not set(before) & set(server.worker_pids())
        expect(visitor.by_id("worker-state")).to_have_text(["ready", "ready"])
        assert visitor.serious_findings() == []


@pytest.mark.slow
def test_what_only_operators_may_do_is_refused_with_a_sentence(start: Start, visit: Visit) -> None:
    server = start("--admin-keys", "ops=admin-secret", "--api-keys", "me=secret-of-mine", is_ready=False)
    with visit(server) as visitor:
        visitor.page.get_by_label("Key", exact=True).fill("secret-of-mine")
        visitor.page.keyboard.press("Enter")
        visitor.page.goto(f"{visitor.url}#/status")
        visitor.page.get_by_role("button", name="Restart worker 0").click()
        expect(visitor.by_id("worker")).to_contain_text("this needs an admin key")
