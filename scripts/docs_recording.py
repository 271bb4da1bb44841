"""A recording of the page for the README, from a server's first second on: ``python -m scripts.docs_recording``.

Everything in it happens as it is shown, but nothing is shown for long that does not change.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import Locator, Page, ViewportSize, sync_playwright

from tests.browser.visitor import launch
from tests.server_process import ROOT, ServerProcess

FILE = ROOT / "docs" / "images" / "recording.webp"
PROMPTS = (
    "a yellow star to the left of a purple square on a gray background",
    "a white moon at the top right on a black background",
)

_SIZE: ViewportSize = {"width": 1120, "height": 700}
_SHOWN_WIDTH = 896
_LONGEST_MS, _LAST_MS = 350, 3000
_LEAST_CHANGE = 0.05


class Recording:
    """What the page looked like, and for how long."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._since_s = time.monotonic()
        self.frames: list[Image.Image] = []
        self.durations_ms: list[int] = []

    def take(self) -> None:
        """One frame, if more has changed than a lamp that pulses and a second that passes."""
        frame = Image.open(io.BytesIO(self._page.screenshot())).convert("RGB")
        height = round(frame.height * _SHOWN_WIDTH / frame.width)
        frame = frame.resize((_SHOWN_WIDTH, height), Image.Resampling.LANCZOS)
        now_s = time.monotonic()
        if self.frames:
            if max(ImageStat.Stat(ImageChops.difference(frame, self.frames[-1])).mean) < _LEAST_CHANGE:
                return
            self.durations_ms.append(min(int((now_s - self._since_s) * 1000), _LONGEST_MS))
        self._since_s = now_s
        self.frames.append(frame)

    def until(self, sight: Locator) -> None:
        """Frames until it is there."""
        while not sight.count():
            self.take()
        self.take()

    def save(self, file: Path) -> None:
        """As an animated WebP that begins again after a while."""
        first, *others = self.frames
        durations_ms = [*self.durations_ms, _LAST_MS]
        first.save(file, save_all=True, append_images=others, duration=durations_ms, quality=60, method=6, loop=0)


def record(url: str) -> None:
    """Asks for the first picture while the model loads, watches it develop, then asks for the next."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport=_SIZE, color_scheme="dark")
        page.goto(url)
        recording = Recording(page)
        for prompt in PROMPTS:
            _ask(page, recording, prompt)
            recording.until(page.locator(f'img.finished[alt="{prompt}"]'))
        recording.save(FILE)
        browser.close()


def _ask(page: Page, recording: Recording, prompt: str) -> None:
    box = page.get_by_label("What should the picture show?")
    words = prompt.split(" ")
    for count in range(1, len(words) + 1):
        box.fill(" ".join(words[:count]))
        recording.take()
    box.press("Enter")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, ServerProcess(Path(folder)) as server:
        record(server.url)
        server.stop()
