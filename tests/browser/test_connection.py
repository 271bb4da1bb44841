"""Connections drop and come back; what was accepted goes on, what was asked for is not lost and not made twice."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.conftest import Start, Visit
from tests.chaos.chaos_server import ChaosServer


def test_a_job_is_followed_on_by_a_server_that_was_killed_and_started_again(start: Start, visit: Visit) -> None:
    server = start(step_s=0.08)
    with visit(server) as visitor:
        visitor.ask("goes on after the crash", steps=30)
        expect(visitor.by_id("progress")).to_contain_text(re.compile(r"Step [1-9]"))
        server.kill()
        expect(visitor.by_id("connection")).to_have_text("Reconnecting…")
        assert visitor.serious_findings() == []
        with server.restart() as again:
            expect(visitor.pictures).to_have_count(1)
            expect(visitor.by_id("connection")).to_contain_text("ready")
            expect(visitor.by_id("notice")).to_have_count(0)
            assert again.get("/v1/predictions").json()["results"][0]["attempt"] == 2


def test_without_a_network_the_page_waits_and_then_goes_on(start: Start, visit: Visit) -> None:
    server = start(step_s=0.06)
    with visit(server) as visitor:
        visitor.ask("finished while nobody looked", steps=30)
        expect(visitor.by_id("progress")).to_contain_text("Step")
        visitor.context.set_offline(True)
        expect(visitor.by_id("connection")).to_have_text("Reconnecting…")
        server.poll(lambda: server.get("/v1/predictions").json()["results"][0]["status"] == "succeeded")
        visitor.context.set_offline(False)
        expect(visitor.by_id("connection")).to_contain_text("ready")
        expect(visitor.pictures).to_have_count(1)


def test_what_is_asked_for_without_a_network_is_sent_once_it_is_back_and_once_only(
    stub: ChaosServer, visit: Visit
) -> None:
    with visit(stub) as visitor:
        expect(visitor.by_id("connection")).to_contain_text("ready")
        visitor.context.set_offline(True)
        visitor.ask("sent later")
        expect(visitor.by_id("progress")).to_have_text("On its way to the server")
        visitor.context.set_offline(False)
        expect(visitor.pictures).to_have_count(1)
    prompts = [shown["params"]["prompt"] for shown in stub.get("/v1/predictions").json()["results"]]
    assert prompts.count("sent later") == 1
