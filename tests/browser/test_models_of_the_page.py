"""A server with several models: one is picked, its jobs say so, and the status view shows how each stands."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import expect

from tests.browser.conftest import Start, Visit
from tests.chaos.chaos_server import ChaosServer

MODELS = """
[[models]]
name = "evening"
model = "safelight/stub"

[[models]]
name = "night"
model = "safelight/stub"
"""


def test_where_there_is_one_model_there_is_nothing_to_pick(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        expect(visitor.page.get_by_label("What should the picture show?")).to_be_visible()
        expect(visitor.page.get_by_label("Model")).to_have_count(0)
        visitor.page.goto(f"{visitor.url}#/status")
        expect(visitor.by_id("worker")).to_be_visible()
        expect(visitor.by_id("model")).to_have_count(0)


def test_a_model_is_picked_drawn_with_remembered_and_shown(start: Start, visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "safelight.toml").write_text(MODELS)
    server = start("--config", str(tmp_path / "safelight.toml"), model="evening")
    with visit(server, permissions=["clipboard-read", "clipboard-write"]) as visitor:
        picker = visitor.page.get_by_label("Model")
        expect(picker).to_have_value("evening")
        visitor.make("by the first", steps=3)
        visitor.page.get_by_label("What should the picture show?").fill("kept while another model is picked")
        picker.select_option("night")
        expect(visitor.page.get_by_label("What should the picture show?")).to_have_value(
            "kept while another model is picked"
        )
        expect(visitor.page.locator("[name=steps]")).to_have_value("4")
        visitor.make("by the second", steps=3)
        drawn_by = {
            shown["params"]["prompt"]: shown["model"] for shown in server.get("/v1/predictions").json()["results"]
        }
        assert drawn_by == {"by the first": "evening", "by the second": "night"}
        visitor.button("Copy as curl").click()
        assert '"model":"night"' in visitor.page.evaluate("navigator.clipboard.readText()")
        visitor.page.reload()
        expect(picker).to_have_value("night")
        visitor.tile("by the first").click()
        visitor.button("Reuse settings").click()
        expect(picker).to_have_value("evening")

        visitor.page.goto(f"{visitor.url}#/status")
        models = visitor.by_id("model")
        expect(models).to_have_count(2)
        expect(models.nth(0)).to_contain_text("unloaded")
        expect(models.nth(1)).to_contain_text("ready")
        expect(visitor.by_id("worker-model")).to_have_text("night")
        visitor.page.get_by_role("button", name="Load evening").click()
        expect(models.nth(0)).to_contain_text("ready")
        assert visitor.serious_findings() == []
