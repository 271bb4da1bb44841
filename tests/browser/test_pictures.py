"""Pictures are asked for, watched, cancelled, kept and used again; what is wrong is said in the server's sentence."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Start, Visit
from tests.browser.visitor import PHONE
from tests.chaos.chaos_server import ChaosServer


def test_a_waiting_job_has_a_place_and_both_it_and_a_running_one_can_be_cancelled(start: Start, visit: Visit) -> None:
    server = start("--batch-limit", "1", step_s=0.08)
    with visit(server) as visitor:
        visitor.make("measured", steps=2)
        visitor.ask("first", steps=150)
        expect(visitor.by_id("progress")).to_contain_text("Step")
        visitor.ask("second", steps=150)
        visitor.ask("third", steps=150)
        expect(visitor.by_id("progress")).to_contain_text("Waiting, 1 before it")
        expect(visitor.by_id("progress")).to_contain_text("left")
        visitor.button("Cancel").click()
        expect(visitor.by_id("reason")).to_have_text("This picture was cancelled.")
        visitor.tile("first").click()
        expect(visitor.by_id("preview")).to_be_visible()
        visitor.button("Cancel").click()
        expect(visitor.by_id("reason")).to_have_text("This picture was cancelled.")
        expect(visitor.tile("second, step")).to_be_visible()


def test_a_grid_of_pictures_each_with_its_own_seed_and_the_file_to_download(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub, permissions=["clipboard-read", "clipboard-write"]) as visitor:
        visitor.make("a grid of four", count=4, seed=40, steps=4)
        expect(visitor.pictures).to_have_count(4)
        third = visitor.page.get_by_role("group", name="Picture 3")
        third.get_by_role("button", name="Copy seed").click()
        assert visitor.page.evaluate("navigator.clipboard.readText()") == "42"
        with visitor.page.expect_download() as downloading:
            third.get_by_role("link", name="Download").click()
        assert downloading.value.suggested_filename == "a-grid-of-four-42.png"
        name = server_names(stub)["a grid of four"]
        assert downloading.value.path().read_bytes() == stub.picture(name, 2)
        assert visitor.serious_findings() == []


def server_names(server: ChaosServer) -> dict[str, str]:
    """Ids of jobs by their prompts."""
    return {shown["params"]["prompt"]: shown["id"] for shown in server.get("/v1/predictions").json()["results"]}


def test_what_is_copied_makes_the_same_picture(stub: ChaosServer, visit: Visit, tmp_path_factory: object) -> None:
    prompt = 'it\'s a "quoted" $HOME `prompt` \\ größer'
    with visit(stub, permissions=["clipboard-read", "clipboard-write"]) as visitor:
        visitor.make(prompt, count=1, seed=7, steps=3)
        copied = {}
        for kind in ("curl", "Python"):
            visitor.button(f"Copy as {kind}").click()
            expect(visitor.page.get_by_text("Copied")).to_be_visible()
            copied[kind] = visitor.page.evaluate("navigator.clipboard.readText()")
            expect(visitor.page.get_by_text("Copied")).to_be_hidden()
    wanted = stub.picture(server_names(stub)[prompt])
    folder = stub.folder.parent / "copied"
    folder.mkdir(exist_ok=True)
    subprocess.run(["bash", "-c", copied["curl"]], cwd=folder, check=True, timeout=30)
    assert (folder / "picture.png").read_bytes() == wanted
    subprocess.run([sys.executable, "-c", copied["Python"]], cwd=folder, check=True, timeout=60)
    assert (folder / "picture-0.png").read_bytes() == wanted


def test_what_the_server_refuses_is_said_in_its_own_sentence_beside_the_field(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        visitor.make("looked at before")
        visitor.ask("too small", width=8)
        body = {"input": {"prompt": "too small", "width": 8}}
        sentence = stub.post("/v1/predictions", body).json()["error"]["message"]
        expect(visitor.by_id("composer-error")).to_have_text(sentence)
        expect(visitor.page.get_by_label("Width in pixels")).to_have_attribute("aria-invalid", "true")
        expect(visitor.tile("too small")).to_have_count(0)
        expect(visitor.job).to_have_attribute("aria-label", "looked at before")
        assert visitor.serious_findings() == []
        visitor.make("now it fits", width=64)
        expect(visitor.by_id("composer-error")).to_have_count(0)


def test_a_job_that_fails_says_why_and_can_be_tried_again(start: Start, visit: Visit) -> None:
    server = start("--faults", "engine.step@1=error")
    with visit(server) as visitor:
        visitor.ask("fails at first")
        reason = visitor.by_id("reason")
        expect(reason).to_contain_text("It failed.")
        error = server.get("/v1/predictions").json()["results"][0]["error"]
        expect(reason).to_contain_text(error)
        expect(visitor.tile("fails at first, failed")).to_be_visible()
        assert visitor.serious_findings() == []
        visitor.button("Try again").click()
        expect(visitor.pictures).to_have_count(1)


def test_settings_are_reused_and_the_lock_keeps_the_seed(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        page = visitor.page
        page.get_by_label("Landscape").check()
        page.get_by_label("Format").select_option("webp")
        visitor.make("to be used again", count=2, steps=3, seed=99)
        page.get_by_label("Square").check()
        visitor.button("Roll another seed").click()
        visitor.make("something else", count=1, steps=5)
        first_seed = page.locator("[name=seed]").input_value()
        assert first_seed != "99"
        visitor.tile("to be used again").click()
        visitor.button("Reuse settings").click()
        expect(page.get_by_label("What should the picture show?")).to_be_focused()
        values = {name: page.locator(f"[name={name}]").input_value() for name in ("steps", "count", "seed", "format")}
        assert values == {"steps": "3", "count": "2", "seed": "99", "format": "webp"}
        expect(page.get_by_label("Landscape")).to_be_checked()
        visitor.button("Keep this seed").click()
        visitor.make("with a new seed", count=1)
        assert page.locator("[name=seed]").input_value() != "99"
        page.reload()
        expect(page.locator("[name=steps]")).to_have_value("3")
        expect(page.get_by_label("What should the picture show?")).to_have_value("with a new seed")


def test_more_like_this_begins_with_the_picture_itself(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        visitor.make("one of a kind", count=1, seed=5, steps=4)
        visitor.button("More like this").click()
        expect(visitor.tiles.and_(visitor.page.get_by_role("button", name="one of a kind, finished"))).to_have_count(2)
    newest = stub.get("/v1/predictions").json()["results"][0]
    assert newest["params"]["source"]["strength"] == pytest.approx(0.6)
    assert (newest["params"]["prompt"], newest["params"]["seed"] != 5) == ("one of a kind", True)


def test_a_seed_beyond_what_scripts_can_count_stays_exact(stub: ChaosServer, visit: Visit) -> None:
    seed = 2**63 - 5
    with visit(stub) as visitor:
        visitor.make("a very long seed", count=1, seed=seed)
        expect(visitor.job).to_contain_text(f"seed {seed}")
    (params,) = [
        shown["params"]
        for shown in json.loads(stub.get("/v1/predictions").text)["results"]
        if shown["params"]["prompt"] == "a very long seed"
    ]
    assert params["seed"] == seed


def test_on_a_phone_everything_fits_and_the_picture_comes_into_view(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub, viewport=PHONE, has_touch=True, is_mobile=True) as visitor:
        visitor.make("on a phone")
        expect(visitor.pictures.first).to_be_in_viewport()
        width = visitor.page.evaluate("document.documentElement.scrollWidth")
        assert width <= PHONE["width"]
        assert visitor.serious_findings() == []
        small = visitor.page.evaluate(
            """[...document.querySelectorAll("button, a.button, select")].filter((e) => e.checkVisibility()
            && !e.closest(".skip, .bare") && e.getBoundingClientRect().height < 24).map((e) => e.outerHTML)"""
        )
        assert small == []


def test_nothing_moves_for_those_who_want_that(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        visitor.ask("still", steps=40)
        expect(visitor.by_id("progress")).to_contain_text("Step")
        assert visitor.page.evaluate("document.getAnimations().length") == 0
        expect(visitor.pictures).to_have_count(1)


def test_nothing_jumps_while_a_picture_develops(stub: ChaosServer, visit: Visit) -> None:
    with visit(stub) as visitor:
        visitor.page.evaluate(
            """window.shifts = 0; new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) window.shifts += entry.value;
            }).observe({ type: "layout-shift" })"""
        )
        visitor.make("steady", steps=12)
        assert visitor.page.evaluate("window.shifts") < 0.1
