"""Who can use the page: those with a key, with a keyboard only, with a screen reader; and what it may never do."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.browser.conftest import Start, Visit
from tests.browser.visitor import Visitor
from tests.chaos.chaos_server import ChaosServer

KEY = "alice-sécret-1€"


def test_a_key_is_asked_for_once_and_a_wrong_one_refused(start: Start, visit: Visit) -> None:
    server = start(is_ready=False, SAFELIGHT_API_KEYS=f"alice={KEY},bob=bob-secret-22")
    with visit(server) as visitor:
        dialog = visitor.page.get_by_role("dialog", name="This server needs an API key")
        expect(dialog).to_be_visible()
        expect(dialog.get_by_label("Key", exact=True)).to_be_focused()
        assert visitor.serious_findings() == []
        visitor.page.keyboard.type("wrong-key")
        visitor.page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_contain_text("this server needs an API key")
        dialog.get_by_label("Key", exact=True).fill(KEY)
        dialog.get_by_label("Remember").check()
        dialog.get_by_role("button").click()
        expect(dialog).to_be_hidden()
        expect(visitor.by_id("connection")).to_contain_text("ready")
        visitor.make("seen by alice only", steps=20)
        visitor.page.reload()
        expect(visitor.tile("seen by alice only")).to_be_visible()
        expect(visitor.pictures).to_be_visible()
        other = visitor.context.new_page()
        other.goto(visitor.url)
        expect(other.get_by_test_id("tile")).to_have_count(1)
        other.close()
        assert not [request.url for request in visitor.requests if "alice-s" in request.url]
        visitor.page.goto(f"{visitor.url}#/status")
        visitor.button("Forget my API key").click()
        expect(dialog).to_be_visible()


def test_a_key_that_is_not_remembered_ends_with_its_tab(start: Start, visit: Visit) -> None:
    server = start(is_ready=False, SAFELIGHT_API_KEYS=f"alice={KEY}")
    with visit(server) as visitor:
        visitor.page.get_by_label("Key", exact=True).fill(KEY)
        visitor.page.keyboard.press("Enter")
        expect(visitor.by_id("connection")).to_contain_text("ready")
        visitor.page.reload()
        expect(visitor.by_id("connection")).to_contain_text("ready")
        other = visitor.context.new_page()
        other.goto(visitor.url)
        expect(other.get_by_role("dialog")).to_be_visible()
        other.close()


def _tab_to(page: Page, name: str, limit: int = 60) -> None:
    """Presses Tab until the thing of that name has the focus, which must be visible."""
    for _ in range(limit):
        page.keyboard.press("Tab")
        focused = page.locator(":focus")
        label = focused.evaluate("(e) => e.getAttribute('aria-label') ?? e.labels?.[0]?.textContent ?? e.textContent")
        if re.search(name, label):
            assert focused.evaluate("(e) => getComputedStyle(e).outlineStyle") != "none"
            return
    raise AssertionError(f"Tab never reached {name}")


def test_with_a_keyboard_alone_a_picture_is_made_looked_at_used_again_and_deleted(
    stub: ChaosServer, visit: Visit
) -> None:
    with visit(stub) as visitor:
        page = visitor.page
        expect(visitor.by_id("connection")).to_contain_text("ready")
        _tab_to(page, "What should the picture show")
        page.keyboard.type("made without a mouse")
        page.keyboard.press("Enter")
        expect(visitor.pictures).to_have_count(1)
        _tab_to(page, "Look closer")
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_be_hidden()
        _tab_to(page, "Reuse settings")
        page.keyboard.press("Space")
        expect(page.get_by_label("What should the picture show?")).to_be_focused()
        page.keyboard.press("Enter")
        expect(visitor.tiles.and_(visitor.tile("made without a mouse, finished"))).to_have_count(2)
        _tab_to(page, "made without a mouse, finished")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        expect(visitor.tiles.nth(1)).to_have_attribute("aria-pressed", "true")
        page.get_by_label("What should the picture show?").focus()
        _tab_to(page, "Delete")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        expect(visitor.tile("made without a mouse")).to_have_count(1)


def test_a_screen_reader_is_told_what_happens(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        live = visitor.page.locator("[aria-live=polite]")
        expect(live).to_have_text("The model is ready.")
        visitor.make("told aloud")
        expect(live).to_have_text("The picture is finished.")
        expect(visitor.page.get_by_role("img", name="told aloud", exact=True)).to_be_visible()


def test_no_view_has_serious_findings(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        expect(visitor.by_id("connection")).to_contain_text("ready")
        assert visitor.serious_findings() == []
        visitor.make("to be looked at")
        assert visitor.serious_findings() == []
        visitor.button("Look closer: to be looked at").click()
        assert visitor.serious_findings() == []
        visitor.page.keyboard.press("Escape")
        _show_status(visitor)
        assert visitor.serious_findings() == []


def _show_status(visitor: Visitor) -> None:
    visitor.page.get_by_role("link", name="Status").click()
    expect(visitor.by_id("worker-state")).to_be_visible()


def test_the_operator_sees_workers_memory_queue_throughput_errors_and_the_load_live(start: Start, visit: Visit) -> None:
    server = start("--faults", "engine.step@40=kill", "--memory-limit-mb", "1000", step_s=0.03, STUB_LOAD_S="1.5")
    with visit(server) as visitor:
        visitor.make("made before", steps=3)
        _show_status(visitor)
        page, state = visitor.page, visitor.by_id("worker-state")
        expect(state).to_have_text("ready")
        expect(page.get_by_text("1 since the start")).to_be_visible()
        expect(page.get_by_text(re.compile(r"weights \d+\.\d s · warmup"))).to_be_visible()
        expect(page.get_by_role("meter", name="Memory")).to_be_visible()
        expect(
            page.get_by_text(
                re.compile(r"^\s*mode full, float32, 7\.0 MB planned, room for steps of \d+\.\d megapixels")
            )
        ).to_be_visible()
        visitor.record("[data-testid=worker-state]")
        server.submit("seen", steps=60)
        expect(page.get_by_role("progressbar", name=re.compile("Steps of req_"))).to_be_visible()
        expect(page.get_by_text("the worker died (exit code -9)").first).to_be_visible()
        expect(page.locator("dl.facts dd").first).to_have_text("1")
        expect(page.get_by_text("2 since the start")).to_be_visible()
        expect(visitor.by_id("past-load")).to_have_count(2)
        expect(visitor.by_id("past-load").last).to_contain_text("lost later: the worker died (exit code -9)")
        expect(visitor.by_id("past-load").first).not_to_contain_text("lost")
        expect(state).to_have_text("ready")
        assert [state for state in visitor.recorded() if state in ("busy", "loading")] == ["busy", "loading", "busy"]


def test_the_page_is_shown_by_no_other_page(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        answer = visitor.page.request.get(visitor.url, headers={"accept": "text/html"})
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
