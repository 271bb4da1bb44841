"""Debian's Chromium, driven by Playwright, as somebody who visits the page; what no visit may ever show is checked."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Playwright, Request, expect

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # everything runs as root in CI
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
TIMEOUT_MS = 30_000
_HARMLESS = ("Failed to load resource", "Password forms should have")
_WATCH_POLICY = """
window.policyViolations = [];
addEventListener("securitypolicyviolation", (e) => policyViolations.push(`${e.violatedDirective} ${e.blockedURI}`));
"""


_RECORD = """(selector) => {
    window.recordedTexts = [];
    const note = () => {
        const text = document.querySelector(selector)?.textContent;
        if (text && text !== recordedTexts.at(-1)) recordedTexts.push(text);
    };
    note();
    new MutationObserver(note).observe(document.body, { subtree: true, childList: true, characterData: true });
}"""


def chromium_path() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def launch(playwright: Playwright) -> Browser:
    return playwright.chromium.launch(executable_path=chromium_path(), args=list(FLAGS))


class Visitor:
    """One visit with storage of its own. Leaving it checks that nothing left the origin and the policy was kept."""

    def __init__(self, browser: Browser, url: str, viewport: dict[str, int] | None = None, **options: Any) -> None:
        options = {"reduced_motion": "reduce", "viewport": viewport or DESKTOP} | options
        self.url = url
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(TIMEOUT_MS)
        self.context.add_init_script(_WATCH_POLICY)
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request))
        self.context.on("console", self._on_console)
        self.context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.page: Page = self.context.new_page()
        expect.set_options(timeout=TIMEOUT_MS)

    def __enter__(self) -> Self:
        self.page.goto(self.url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        violations = self.page.evaluate("window.policyViolations")
        self._keep_screenshot(failed=kind is not None)
        self.context.close()
        if kind is None:
            assert violations == []
            assert self.complaints == []
            assert self.foreign_requests() == []

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(_HARMLESS):
            self.complaints.append(message.text)

    def _keep_screenshot(self, *, failed: bool) -> None:
        if failed and (folder := os.environ.get("BROWSER_SCREENSHOTS")):
            name = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0].rpartition("::")[2]
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def foreign_requests(self) -> list[str]:
        """Addresses on other origins that were asked for."""
        own = urlsplit(self.url)[:2]
        return [
            found.url
            for found in self.requests
            if urlsplit(found.url).scheme not in ("blob", "data") and urlsplit(found.url)[:2] != own
        ]

    # --- what is seen -----------------------------------------------------------------------------------------------

    def by_id(self, name: str) -> Locator:
        return self.page.get_by_test_id(name)

    @property
    def job(self) -> Locator:
        """The job that is looked at."""
        return self.by_id("job")

    @property
    def pictures(self) -> Locator:
        """Its finished pictures."""
        return self.by_id("picture")

    @property
    def tiles(self) -> Locator:
        """The history, newest first."""
        return self.by_id("tile")

    def tile(self, prompt: str) -> Locator:
        return self.page.get_by_role("button", name=prompt).and_(self.tiles)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def record(self, selector: str) -> None:
        """From now on remembers what that part says, however short, for ``recorded``."""
        self.page.evaluate(_RECORD, selector)

    def recorded(self) -> list[str]:
        """What was said, in that order."""
        texts: list[str] = self.page.evaluate("window.recordedTexts")
        return texts

    # --- what is done -----------------------------------------------------------------------------------------------

    def ask(self, prompt: str, **fields: object) -> None:
        """Fills in the form and sends it with Enter."""
        for name, value in fields.items():
            field = self.page.locator(f"[name={name}]")
            field.fill(str(value))
            field.blur()
        self.page.get_by_label("What should the picture show?").fill(prompt)
        self.page.keyboard.press("Enter")

    def make(self, prompt: str, **fields: object) -> None:
        """Asks for pictures and waits until they are finished."""
        self.ask(prompt, **fields)
        finished = self.page.get_by_label(prompt, exact=True).and_(self.page.locator("[data-status=succeeded]"))
        expect(finished).to_be_visible()

    def serious_findings(self) -> list[str]:
        """What axe-core finds on the page as it is now that would keep somebody from using it."""
        found = Axe().run(self.page)
        return [
            f"{finding['id']}: {node['html'][:200]}"
            for finding in found.response["violations"]
            if finding["impact"] in ("serious", "critical")
            for node in finding["nodes"]
        ]
