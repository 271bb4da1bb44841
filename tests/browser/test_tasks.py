"""What the page offers and demands of a picture is what the model can be asked for. The server's list is changed on its
way: the page knows a model by that list alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Route, expect

from tests.browser.conftest import Visit
from tests.browser.visitor import Visitor
from tests.chaos.chaos_server import ChaosServer


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (128, 96), "blue").save(tmp_path / "blue.png")
    return tmp_path / "blue.png"


def _has(visitor: Visitor, *tasks: str) -> list[dict[str, Any]]:
    """From now on the model has these tasks. Gives what is asked of it; nothing of that reaches the server."""
    asked: list[dict[str, Any]] = []

    def models(route: Route) -> None:
        body = route.fetch().json()
        body["data"][0]["tasks"] = list(tasks)
        route.fulfill(json=body)

    def submitted(route: Route) -> None:
        if route.request.method != "PUT":
            return route.continue_()
        asked.append(json.loads(route.request.post_data or "")["input"])
        error = {"message": "That was enough.", "code": "invalid_value", "param": None, "type": "invalid_request_error"}
        route.fulfill(status=400, json={"error": error})

    visitor.page.route("**/v1/models", models)
    visitor.page.route(
        "**/v1/predictions/*", lambda route: submitted(route) if route.request.method == "PUT" else route.continue_()
    )
    visitor.page.reload()
    return asked


def test_a_model_that_edits_takes_neither_mask_nor_strength(stub: ChaosServer, visit: Visit, picture: Path) -> None:
    with visit(stub) as visitor:
        asked = _has(visitor, "text-to-image", "image-editing")
        page = visitor.page
        page.locator("#source-file").set_input_files(picture)
        expect(visitor.by_id("source")).to_be_visible()
        expect(page.get_by_text("The model looks at it while it draws")).to_be_visible()
        expect(visitor.by_id("mask")).to_have_count(0)
        expect(page.get_by_label("Change", exact=True)).to_have_count(0)
        assert visitor.serious_findings() == []
        visitor.ask(" ")
        expect(visitor.by_id("composer-error")).to_have_text("Say first what the picture should show.")
        visitor.ask("make it red")
        expect(visitor.by_id("composer-error")).to_have_text("That was enough.")
    assert [set(members) & {"image", "mask", "prompt_strength"} for members in asked] == [{"image"}]


def test_a_model_that_fills_demands_a_picture_and_a_mask(stub: ChaosServer, visit: Visit, picture: Path) -> None:
    with visit(stub) as visitor:
        asked = _has(visitor, "inpainting")
        error, page = visitor.by_id("composer-error"), visitor.page
        expect(page.get_by_role("button", name="Choose the picture to change")).to_be_visible()
        visitor.ask("a red star")
        expect(error).to_have_text("This model changes pictures: choose one first.")
        page.locator("#source-file").set_input_files(picture)
        expect(page.get_by_text("the model draws only there")).to_be_visible()
        visitor.ask("a red star")
        expect(error).to_have_text("Paint over what is to be drawn anew first.")
        visitor.by_id("mask").focus()
        page.keyboard.press("Space")
        expect(page.get_by_text("Only what is under the red film is drawn anew.")).to_be_visible()
        visitor.ask("a red star")
        expect(error).to_have_text("That was enough.")
    assert [set(members) & {"image", "mask"} for members in asked] == [{"image", "mask"}]


def test_a_model_that_only_draws_is_offered_no_picture(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        _has(visitor, "text-to-image")
        expect(visitor.page.get_by_label("What should the picture show?")).to_be_visible()
        expect(visitor.page.locator("#source-file")).to_have_count(0)
