"""The page in a real Chromium: the game moves, the keyboard plays, the card is right."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serving.launcher import running
from serving.settings import ServingSettings
from tests.support.onnx_networks import write_test_artefact
from tests.support.serving_load import wait_until

playwright_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]
TOKEN = "page-token-0123456789"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # The champion always holds right, so that Mario moves by himself, too.
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


def test_the_keyboard_moves_mario_and_hands_back(page: Any) -> None:
    page.keyboard.press("t")
    assert wait_until(lambda: page.locator("#who").inner_text() == "you")
    page.keyboard.press("r")
    assert wait_until(lambda: _data(page, "frame") < 60)
    time.sleep(1)
    still = _data(page, "x")
    time.sleep(0.5)
    assert _data(page, "x") == still  # nobody presses anything now
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
    assert wait_until(lambda: _data(page, "x") > left + 20)  # and the champion runs on


def test_pause_and_speed(page: Any) -> None:
    page.click("#pause")
    time.sleep(0.4)
    frame = _data(page, "frame")
    time.sleep(0.5)
    assert _data(page, "frame") == frame
    page.click("#pause")
    page.select_option("#speed", "0.25")
    assert wait_until(lambda: _data(page, "frame") > frame + 5)
    assert page.get_attribute("#pause", "aria-pressed") == "false"


def test_the_card_is_the_version_that_the_api_names(page: Any, url: str) -> None:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/octet-stream"}
    answer = httpx.post(f"{url}/predict/raw", content=bytes(28224), headers=headers).json()
    assert wait_until(lambda: page.locator("#card dd[data-name=version]").count() == 1)
    assert page.locator("#card dd[data-name=version]").inner_text() == answer["version"] == "v7"
    assert answer["digest"].startswith(page.locator("#card dd[data-name=digest]").inner_text())


def test_every_control_is_reached_by_keyboard(page: Any) -> None:
    reached = set()
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"screen", "level", "seed", "speed", "sticky", "restart", "pause", "pad"} <= reached


def test_the_api_page_sends_its_examples(page: Any, url: str) -> None:
    page.goto(f"{url}/docs")
    page.locator("body[data-ready=yes]").wait_for()
    buttons = page.locator("button[data-operation]")
    assert buttons.count() >= 15
    for i in range(buttons.count()):
        button = buttons.nth(i)
        if button.get_attribute("data-operation") == "end_session":
            continue
        button.click()
        output = page.locator("pre").nth(i)
        output.wait_for()
        assert output.get_attribute("data-status") in ("200", "201"), output.inner_text()


def test_screenshot_is_kept_for_people(page: Any, tmp_path: Path) -> None:
    page.screenshot(path=str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 20_000
