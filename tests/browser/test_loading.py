"""Loading is something to see: components fill with bytes, phases go by, what was asked for meanwhile waits."""

from __future__ import annotations

import re
import signal

from playwright.sync_api import expect

from tests.browser.conftest import Start, Visit


def test_a_page_that_is_opened_at_once_sees_the_load_from_its_bytes_to_the_picture(start: Start, visit: Visit) -> None:
    server = start(is_ready=False, STUB_LOAD_S="3", step_s=0.03)
    with visit(server) as visitor:
        panel = visitor.by_id("loading")
        expect(panel.get_by_role("heading")).to_have_text("The model is loading")
        components = visitor.by_id("component")
        expect(components).to_have_count(7)
        transformer = components.filter(has_text="transformer").get_by_role("progressbar")
        assert transformer.get_attribute("max") == "1000000"
        visitor.record("[data-testid=phase]")
        assert visitor.serious_findings() == []
        expect(visitor.button("Make it when the model is ready")).to_be_visible()
        visitor.ask("asked for while it loads")
        expect(visitor.by_id("progress")).to_contain_text("Waiting, next in line")
        expect(components.first).to_contain_text("1.0 MB of 1.0 MB")
        expect(transformer).to_have_attribute("value", "1000000")
        expect(panel).to_be_hidden()
        seen = [sentence.partition(" · ")[0] for sentence in visitor.recorded()]
        phases = list(dict.fromkeys(seen))[-2:]  # a quick browser sees the start of the worker, too
        assert phases == ["Reading the weights on cpu", "Warming up with a first picture on cpu"]
        expect(visitor.button("Make the picture")).to_be_visible()
        expect(visitor.by_id("connection")).to_contain_text(re.compile("ready|drawing"))
        expect(visitor.pictures).to_have_count(1)


def test_a_load_that_failed_says_why_and_can_be_tried_again(start: Start, visit: Visit) -> None:
    server = start("--faults", "engine.load@1=error", is_ready=False)
    with visit(server) as visitor:
        failed = visitor.by_id("load-failed")
        expect(failed).to_be_visible()
        (sentence,) = {worker["error"] for worker in server.status()["workers"]}
        expect(failed).to_contain_text(sentence)
        assert visitor.serious_findings() == []
        failed.get_by_role("button", name="Try again").click()
        expect(failed).to_be_hidden()
        expect(visitor.by_id("connection")).to_contain_text("ready")
        visitor.make("after the second try")
        visitor.page.get_by_role("link", name="Status").click()
        loads = visitor.by_id("past-load")
        expect(loads).to_have_count(2)
        expect(loads.first).to_contain_text("ready in")
        expect(loads.last).to_contain_text(sentence)


def test_a_worker_that_died_is_seen_to_start_again_and_its_job_goes_on(start: Start, visit: Visit) -> None:
    server = start("--faults", "engine.step@12=kill", step_s=0.05, STUB_LOAD_S="1.5")
    with visit(server) as visitor:
        visitor.ask("survives its worker", steps=12)
        panel = visitor.by_id("loading")
        expect(panel.get_by_role("heading")).to_have_text("The worker starts again")
        expect(panel).to_contain_text("the worker died (exit code -9)")
        expect(visitor.by_id("progress")).to_contain_text("Its worker was lost: it runs again")
        expect(visitor.pictures).to_have_count(1)
        expect(panel).to_be_hidden()


def test_a_server_that_shuts_down_says_so_and_not_that_it_loads(start: Start, visit: Visit) -> None:
    server = start("--batch-limit", "1", "--grace-period-s", "2", step_s=0.05)
    with visit(server) as visitor:
        visitor.ask("cut off by the end", steps=200)
        expect(visitor.by_id("progress")).to_contain_text("Step")
        server.process.send_signal(signal.SIGTERM)
        expect(visitor.by_id("notice")).to_contain_text("The server is shutting down")
        expect(visitor.by_id("loading")).to_have_count(0)
        server.process.wait(30)
        expect(visitor.by_id("notice")).to_contain_text("The server cannot be reached")
        expect(visitor.by_id("loading")).to_have_count(0)
