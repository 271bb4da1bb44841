"""The embedded model in the page: previews develop, the picture is what was asked for, a mask changes only its part."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import Visit
from tests.browser.visitor import Visitor
from tests.server_process import ServerProcess
from training.checker import Pixels, judge
from training.pastel import pale
from training.scenes import Scene, Thing

CIRCLE = Scene("blue", (Thing("red", "circle", "large", 0.5, 0.5),), position="in the center")
PALE_CIRCLE = pale(CIRCLE)
CIRCLE_PROMPT = "a large red circle on a blue background"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("embedded")) as started:
        started.wait_until_ready()
        yield started
        assert started.stop() == 0


def _pixels(visitor: Visitor) -> Pixels:
    """Of the finished picture, as the browser got it."""
    path = visitor.pictures.get_attribute("src")
    data = visitor.page.request.get(f"{visitor.url.rstrip('/')}{path}").body()
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_a_picture_develops_step_by_step_into_what_the_prompt_says(server: ServerProcess, visit: Visit) -> None:
    with visit(server) as visitor:
        visitor.page.get_by_role("button", name=CIRCLE_PROMPT).click()
        visitor.page.evaluate(
            """window.seen = new Set(); new MutationObserver(() => {
                const image = document.querySelector("[data-testid=preview]");
                if (image) window.seen.add(image.src);
            }).observe(document.body, { subtree: true, childList: true, attributes: true, attributeFilter: ["src"] })"""
        )
        visitor.button("Make the picture").click()
        expect(visitor.pictures).to_have_count(1)
        assert visitor.page.evaluate("window.seen.size") >= 3
        assert judge(_pixels(visitor), CIRCLE).is_right


def test_the_page_says_what_this_model_knows_and_words_make_a_prompt(server: ServerProcess, visit: Visit) -> None:
    with visit(server) as visitor:
        page = visitor.page
        page.get_by_text("The only words that it knows").click()
        for group, words in (("Colours", 13), ("Shapes", 9), ("Sizes", 3), ("Places", 9), ("Of two", 4)):
            assert page.get_by_role("group", name=group).get_by_role("button").count() == words
        for word in ("small", "lime", "heart"):
            page.get_by_role("button", name=word, exact=True).click()
        expect(page.get_by_label("What should the picture show?")).to_have_value("a small lime heart ")
        assert visitor.serious_findings() == []


def test_a_dropped_picture_with_a_painted_mask_changes_only_there(
    server: ServerProcess, visit: Visit, tmp_path: Path
) -> None:
    drawn = Image.new("RGB", (256, 256), (35, 75, 220))
    drawn.paste((225, 30, 35), (150, 80, 230, 160))
    drawn.save(tmp_path / "square.png")
    with visit(server) as visitor:
        page = visitor.page
        expect(page.get_by_role("button", name="Change a picture")).to_be_visible()
        _drop(visitor, tmp_path / "square.png")
        mask = visitor.by_id("mask")
        expect(mask).to_be_visible()
        box = mask.bounding_box()
        assert box is not None
        for row in range(9):
            page.mouse.move(box["x"] + 4, box["y"] + box["height"] * (0.1 + row / 10))
            page.mouse.down()
            page.mouse.move(box["x"] + box["width"] * 0.38, box["y"] + box["height"] * (0.1 + row / 10), steps=3)
            page.mouse.up()
        expect(page.get_by_text("Only what is under the red film is drawn anew.")).to_be_visible()
        assert visitor.serious_findings() == []
        visitor.make("a yellow star to the left of a red square on a blue background", seed=3)
        pixels = _pixels(visitor)
    before = np.asarray(drawn)
    assert (pixels[:, 150:] == before[:, 150:]).all()
    yellow = (pixels[:, :120, 0] > 200) & (pixels[:, :120, 1] > 180) & (pixels[:, :120, 2] < 110)
    assert yellow.sum() > 300


def test_a_mask_can_be_painted_with_the_keyboard(server: ServerProcess, visit: Visit, tmp_path: Path) -> None:
    Image.new("RGB", (256, 256), "blue").save(tmp_path / "blue.png")
    with visit(server) as visitor:
        visitor.page.locator("#source-file").set_input_files(tmp_path / "blue.png")
        mask = visitor.by_id("mask")
        mask.focus()
        for key in ("ArrowLeft", "Space", "Shift+ArrowDown", "Shift+ArrowDown"):
            visitor.page.keyboard.press(key)
        expect(visitor.page.get_by_text("Only what is under the red film is drawn anew.")).to_be_visible()
        visitor.button("Clear").click()
        expect(visitor.page.get_by_text("Paint over what should change")).to_be_visible()


def test_a_file_that_is_no_picture_is_refused_in_a_sentence(
    server: ServerProcess, visit: Visit, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with visit(server) as visitor:
        visitor.page.locator("#source-file").set_input_files(tmp_path / "notes.txt")
        expect(visitor.page.get_by_role("alert")).to_have_text("notes.txt is not a picture that this browser can read.")


def _drop(visitor: Visitor, path: Path) -> None:
    """As if the file were dragged in from elsewhere."""
    transfer = visitor.page.evaluate_handle(
        """(bytes) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([new Uint8Array(bytes)], "square.png", { type: "image/png" }));
            return transfer;
        }""",
        list(path.read_bytes()),
    )
    for kind in ("dragover", "drop"):
        visitor.page.locator("main").dispatch_event(kind, {"dataTransfer": transfer})


def test_an_adapter_is_picked_with_a_scale_shown_with_the_picture_and_used_again(
    server: ServerProcess, visit: Visit, tmp_path: Path
) -> None:
    with visit(server, permissions=["clipboard-read", "clipboard-write"]) as visitor:
        page, chosen = visitor.page, visitor.by_id("lora")
        pick = page.get_by_label("Add a LoRA adapter")
        pick.select_option("pastel")
        expect(chosen).to_have_count(1)
        expect(pick).to_be_hidden()  # there are no others
        visitor.make(CIRCLE_PROMPT, seed=1)
        assert judge(_pixels(visitor), PALE_CIRCLE).colour
        expect(visitor.job).to_contain_text("pastel 1")
        visitor.button("Copy as curl").click()
        expect(page.get_by_text("Copied")).to_be_visible()
        assert '"loras":[{"name":"pastel","scale":1}]' in page.evaluate("navigator.clipboard.readText()")
        assert visitor.serious_findings() == []
        exactly = page.get_by_label("pastel, how strongly, exactly")
        exactly.fill("0.4")
        exactly.blur()
        visitor.make("a blue star on a white background", steps=3)
        expect(visitor.job).to_contain_text("pastel 0.4")
        visitor.button("Without pastel").click()
        expect(chosen).to_be_hidden()
        visitor.make("a red star on a white background", steps=3)
        expect(visitor.job).not_to_contain_text("pastel")
        visitor.tile(CIRCLE_PROMPT).first.click()
        visitor.button("Reuse settings").click()
        expect(page.get_by_label("pastel, how strongly, exactly")).to_have_value("1")
        if folder := os.environ.get("BROWSER_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "loras.png")
