"""The web page in a real Chromium: the game runs, the keyboard plays, the card is correct."""

from __future__ import annotations

import io
import itertools
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from mario.registry.registry import ModelRegistry
from mario.store.store import ExperimentStore
from serving.launcher import running
from serving.settings import ServingSettings
from tests.support.onnx_networks import write_test_artefact
from tests.support.serving_load import wait_until
from tests.support.serving_registry import following
from tests.support.store_rows import evaluation_key, evaluation_record, verdict

playwright_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
TOKEN = "page-token-0123456789"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # The champion always holds right, so Mario moves without a person.
    folder = write_test_artefact(tmp_path_factory.mktemp("policy") / "v7", constant_action=1).folder
    with running(ServingSettings(policy=folder, port=0, tokens=TOKEN)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1240, "height": 1100})
    page = context.new_page()
    problems: list[str] = []
    elsewhere: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request", lambda r: None if r.url.startswith((url, "data:", "blob:", "ws://127.0.0.1"))
        else elsewhere.append(r.url)
    )  # fmt: skip
    page.goto(url)
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.locator("#screen").wait_for()
    assert wait_until(lambda: _data(page, "frames") > 10)
    yield page
    context.close()
    assert problems == []
    assert elsewhere == []


def _data(page: Any, name: str) -> int:
    return int(page.get_attribute("body", f"data-{name}") or 0)


def _picture(page: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.locator("#screen").screenshot())).convert("RGB"))


def test_the_champion_plays_and_the_canvas_changes(page: Any) -> None:
    first, x = _picture(page), _data(page, "x")
    assert wait_until(lambda: _data(page, "x") > x + 30)
    second = _picture(page)
    assert first.shape == second.shape
    assert (first != second).any(axis=2).mean() > 0.005
    assert len(np.unique(second.reshape(-1, 3), axis=0)) >= 5
    assert page.locator("#bars .bar").count() == 7
    assert page.locator("#bars .chosen b").inner_text() == "right"
    assert "on" in (page.get_attribute("#controller [data-bit='128']", "class") or "")


def test_the_level_picker_seed_and_restart(page: Any) -> None:
    page.select_option("#level", "4-2")
    page.locator("body[data-level='4-2']").wait_for()
    time.sleep(0.5)
    underground = _picture(page)
    page.select_option("#level", "1-1")
    page.locator("body[data-level='1-1']").wait_for()
    time.sleep(0.5)
    assert np.abs(underground.astype(int) - _picture(page).astype(int)).mean() > 20
    page.fill("#seed", "12")
    page.press("#seed", "Enter")
    assert wait_until(lambda: _data(page, "frame") < 30)
    assert page.input_value("#seed") == "12"


def test_an_invalid_seed_does_not_end_the_game(page: Any) -> None:
    # The browser itself refuses negative and malformed numbers: the game continues unchanged.
    largest = str(2**53 - 1)
    for typed, taken in (("1e300", largest), ("-5", largest), ("3.7", largest), ("", "0")):
        page.fill("#seed", typed)
        page.press("#seed", "Enter")
        page.locator("#screen").focus()  # a focused field keeps its text
        assert wait_until(lambda t=taken: page.input_value("#seed") == t), typed
        assert page.locator("#status").inner_text() == "live"


def test_sticky_actions_can_be_switched_off_and_on(page: Any) -> None:
    for wanted in ("false", "true"):
        page.click("#sticky")
        page.locator(f"body[data-sticky='{wanted}']").wait_for()
        assert wait_until(lambda: 0 < _data(page, "frame") < 60)  # a new episode with it


def test_the_value_is_drawn_over_time(page: Any) -> None:
    script = """() => {
      const canvas = document.getElementById("values");
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const columns = [];
      for (let x = 0; x < canvas.width; x++) {
        let painted = 0;
        for (let y = 0; y < canvas.height; y++) painted += data[4 * (y * canvas.width + x) + 3] > 0;
        columns.push(painted);
      }
      return columns;
    }"""
    page.click("#restart")
    assert wait_until(lambda: _data(page, "frame") > 40)
    # The zero line takes one or two pixels of each column; the value is drawn above it.
    early = sum(count > 2 for count in page.evaluate(script))
    assert wait_until(lambda: sum(count > 2 for count in page.evaluate(script)) > early + 20)
    float(page.locator("#value").inner_text())  # a number, not the initial dash


def test_the_keyboard_plays_and_control_returns_to_the_champion(page: Any) -> None:
    page.keyboard.press("t")
    assert wait_until(lambda: page.locator("#who").inner_text() == "you")
    page.keyboard.press("r")
    assert wait_until(lambda: _data(page, "frame") < 60)
    time.sleep(1)
    still = _data(page, "x")
    time.sleep(0.5)
    assert _data(page, "x") == still  # no key is pressed now
    page.keyboard.down("ArrowRight")
    assert wait_until(lambda: _data(page, "x") > still + 40)
    page.keyboard.up("ArrowRight")
    time.sleep(0.7)
    right = _data(page, "x")
    page.keyboard.down("ArrowLeft")
    assert wait_until(lambda: _data(page, "x") < right - 10)
    page.keyboard.up("ArrowLeft")
    page.click("#pad")
    assert wait_until(lambda: page.locator("#who").inner_text() == "champion")
    left = _data(page, "x")
    assert wait_until(lambda: _data(page, "x") > left + 20)  # the champion runs again


def _take_the_pad(page: Any) -> None:
    page.keyboard.press("t")
    assert wait_until(lambda: page.locator("#who").inner_text() == "you")
    page.keyboard.press("r")
    assert wait_until(lambda: _data(page, "frame") < 60)


def _held(page: Any) -> set[str]:
    """The pressed buttons as reported by the game, not the page: the byte as decimal text."""
    script = "shapes => shapes.map(shape => shape.dataset.bit)"
    return set(page.eval_on_selector_all("#controller .on[data-bit]", script))


@pytest.mark.parametrize(
    "meanwhile",
    [
        pytest.param(lambda page: page.locator("#seed").focus(), id="a field is entered"),
        pytest.param(lambda page: page.locator("#level").focus(), id="a list is entered"),
        pytest.param(lambda page: page.keyboard.down("Control"), id="Ctrl is held"),
        pytest.param(lambda page: page.keyboard.down("Alt"), id="Alt is held"),
    ],
)
def test_a_released_key_releases_its_button_whatever_happened_meanwhile(
    page: Any, meanwhile: Any
) -> None:
    _take_the_pad(page)
    page.keyboard.down("ArrowRight")
    assert wait_until(lambda: _held(page) == {"128"})
    meanwhile(page)
    page.keyboard.up("ArrowRight")
    assert wait_until(lambda: _held(page) == set(), 3)


def test_leaving_the_page_releases_keys_and_a_restart_does_not(page: Any) -> None:
    _take_the_pad(page)
    page.keyboard.down("z")
    assert wait_until(lambda: _held(page) == {"2"})
    page.keyboard.down("Shift")
    page.keyboard.up("Z")  # the same key under another name
    assert wait_until(lambda: _held(page) == set(), 3)
    page.keyboard.up("Shift")
    for leaving in (
        "dispatchEvent(new Event('blur'))",
        "Object.defineProperty(document, 'hidden', { value: true, configurable: true });"
        "document.dispatchEvent(new Event('visibilitychange'));",
    ):
        page.keyboard.down("ArrowRight")
        assert wait_until(lambda: _held(page) == {"128"})
        page.evaluate(leaving)
        assert wait_until(lambda: _held(page) == set(), 3)
        page.keyboard.up("ArrowRight")
    # Two keys of one button: it is held while either key is.
    page.keyboard.down("x")
    page.keyboard.down(" ")
    page.keyboard.up("x")
    page.keyboard.press("r")
    assert wait_until(lambda: _data(page, "frame") < 30)
    assert wait_until(lambda: _held(page) == {"1"}, 3)
    page.keyboard.up(" ")
    assert wait_until(lambda: _held(page) == set(), 3)


def test_the_person_can_take_control_after_using_a_field_by_keyboard(page: Any) -> None:
    page.locator("#level").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")  # while a person only watches, keys go to the list
    page.locator("body[data-level='1-3']").wait_for()
    page.keyboard.press("t")
    assert wait_until(lambda: page.locator("#who").inner_text() == "you")
    assert page.evaluate("document.activeElement.id") == "screen"
    # After taking control, the next arrow key moves Mario, not the list.
    page.locator("#level").focus()
    page.keyboard.press("ArrowUp")
    page.locator("body[data-level='1-2']").wait_for()
    assert page.evaluate("document.activeElement.id") == "screen"
    page.keyboard.down("ArrowLeft")
    assert wait_until(lambda: _held(page) == {"64"})
    page.keyboard.up("ArrowLeft")
    assert page.get_attribute("body", "data-level") == "1-2"
    page.locator("#seed").focus()
    page.keyboard.press("t")
    assert wait_until(lambda: page.locator("#who").inner_text() == "champion")
    assert page.input_value("#seed").isdigit()


def test_pause_and_speed(page: Any) -> None:
    page.click("#pause")
    time.sleep(0.4)
    frame = _data(page, "frame")
    time.sleep(0.5)
    assert _data(page, "frame") == frame
    page.click("#pause")
    assert page.get_attribute("#pause", "aria-pressed") == "false"
    played = {}
    for speed in ("0.25", "1"):
        page.select_option("#speed", speed)
        page.click("#restart")
        assert wait_until(lambda: 0 < _data(page, "frame") < 20)
        first, started = _data(page, "frame"), time.monotonic()
        time.sleep(1.5)
        played[speed] = (_data(page, "frame") - first) / (time.monotonic() - started)
    # 60 frames a second and 15; a busy machine loses more of the former.
    assert played["1"] > 2 * played["0.25"]
    assert 5 < played["0.25"] < 18


def test_the_card_shows_the_version_of_the_api(page: Any, url: str) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/octet-stream"}
    answer = httpx.post(f"{url}/predict/raw", content=bytes(28224), headers=headers).json()
    assert wait_until(lambda: page.locator("#card dd[data-name=version]").count() == 1)
    assert page.locator("#card dd[data-name=version]").inner_text() == answer["version"] == "v7"
    assert answer["digest"].startswith(page.locator("#card dd[data-name=digest]").inner_text())


def test_every_control_is_reachable_by_keyboard(page: Any) -> None:
    reached = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"screen", "level", "seed", "speed", "sticky", "restart", "pause", "pad"} <= reached


def test_the_api_page_sends_its_examples(page: Any, url: str) -> None:
    page.goto(f"{url}/docs")
    page.locator("body[data-ready=yes]").wait_for()
    buttons = page.locator("button[data-operation]")
    assert buttons.count() >= 22
    for i in range(buttons.count()):
        button = buttons.nth(i)
        button.click()
        output = page.locator("pre").nth(i)
        output.wait_for()
        assert output.get_attribute("data-status") in ("200", "201"), output.inner_text()


def _outcome(cleared: bool) -> dict[str, object]:
    return {"cleared": True, "end_reason": "flag", "furthest_px": 3160} if cleared else {}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRegistry]:
    """Version 1, the first champion, and version 2, which beat it on two levels."""
    place = tmp_path_factory.mktemp("registry")
    store = ExperimentStore.open(f"sqlite:///{place / 'mario.db'}")
    registry = ModelRegistry(f"sqlite:///{place / 'mlflow.db'}", store, place / "artifacts")
    refs = []
    for number in (1, 2):
        folder = write_test_artefact(place / f"v{number}", number, constant_action=1).folder
        version = registry.register("mario-1-1", folder).version
        assert version is not None
        refs.append((version, registry.resolve("mario-1-1", version).digest))
    first, second = refs
    registry.promote("mario-1-1", first[0], verdict_id=None, promoted_by="test")
    won = verdict(store, second, first)
    registry.promote(
        "mario-1-1", second[0], verdict_id=won, promoted_by="ann", note="nightly of Tuesday"
    )
    evaluation = store.evaluations.open(
        replace(evaluation_key(second[1], "page"), levels=("1-1", "1-2")), planned_units=20
    )
    records = [
        evaluation_record(
            second[1], 2**62 + 10 * int(level[-1]) + n, level=level, **_outcome(n < 8)
        )
        for level in ("1-1", "1-2")
        for n in range(10)
    ]
    store.evaluations.add(evaluation.id, records)
    store.evaluations.finish(evaluation.id)
    yield registry
    store.close()


def test_the_card_shows_clear_rates_with_intervals_and_the_reason(
    registry: ModelRegistry, browser: Any, tmp_path: Path
) -> None:
    settings = following(registry, tmp_path / "cache")
    with running(settings, ready_seconds=120) as url:
        context = browser.new_context(viewport={"width": 1240, "height": 1100})
        page = context.new_page()
        page.goto(url)
        page.locator("#card dd[data-name=version]").wait_for()

        def row(name: str) -> str:
            return str(page.locator(f"#card dd[data-name='{name}']").inner_text())

        assert row("version") == "2"
        assert "beat the champion before it" in row("why")
        assert "nightly of Tuesday" in row("why")
        promotion = registry.store.ledger.champion("mario-1-1")
        assert promotion is not None
        assert str(promotion.promoted_at.year) in row("promoted")
        assert row("promoted by") == "ann"
        # Wilson's interval for 8 of 10 is 0.490 to 0.943.
        assert page.locator("#rates").is_visible()
        cells = [r.inner_text().split("\t") for r in page.locator("#rates tbody tr").all()]
        interval = "49.0 % – 94.3 %"
        assert cells == [[level, "8 of 10", "80.0 %", interval] for level in ("1-1", "1-2")]
        # A rollback changes the card of an open page without a reload.
        registry.rollback("mario-1-1", promoted_by="ben", note="worse in the evening")
        assert wait_until(lambda: row("version") == "1")
        assert wait_until(lambda: "worse in the evening" in row("why"))
        answer = httpx.post(
            f"{url}/predict/raw",
            content=bytes(28224),
            headers={"content-type": "application/octet-stream"},
        ).json()
        assert answer["version"] == row("version")
        context.close()


@pytest.mark.parametrize("size", [(1240, 1100), (390, 844)], ids=["desktop", "telephone"])
def test_the_layout_fits_the_screen_without_overlap(page: Any, size: tuple[int, int]) -> None:
    width, height = size
    page.set_viewport_size({"width": width, "height": height})
    page.locator("#card dd[data-name=version]").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # no horizontal scrolling
    parts = ("#screen", ".hud", "#controls", ".hint", "#controller", "#bars", "#values", "#card")
    boxes = {part: page.locator(part).bounding_box() for part in parts}
    for part, box in boxes.items():
        assert box is not None, part
        assert box["width"] > 100, part
        assert box["height"] > 15, part
        assert box["x"] >= 0, part
        assert box["x"] + box["width"] <= width + 1, part
    if width > 820:  # in columns: the game is visible without scrolling
        for part in parts[:-1]:
            assert boxes[part]["y"] + boxes[part]["height"] <= height, part
    # No two parts overlap.
    for part, other in itertools.combinations(parts, 2):
        a, b = boxes[part], boxes[other]
        assert (
            a["x"] + a["width"] <= b["x"] + 1
            or b["x"] + b["width"] <= a["x"] + 1
            or a["y"] + a["height"] <= b["y"] + 1
            or b["y"] + b["height"] <= a["y"] + 1
        ), (part, other)
    # Even the largest numbers fit on their line.
    assert page.locator("#bars .chosen output").inner_text() == "100.0 %"
    heights = page.eval_on_selector_all("#bars .bar", "bars => bars.map(b => b.offsetHeight)")
    assert len(heights) == 7
    assert len(set(heights)) == 1, heights
