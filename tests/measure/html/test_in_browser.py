"""The page in a real browser. `INFERENCE_PIO_IMAGES=docs/images` keeps the screenshot that the README shows."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_pio.measure.html.page import write_page
from tests.measure.html.browser import CHROMIUM, DRIVER, MISSING, browser, look_at, screenshot
from tests.measure.html.sample import profiles_of_record, with_steps

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=MISSING),
]
WIDTHS, THEMES = (1280, 360), ("light", "dark")
IMAGE_HEIGHT, IMAGE_BYTES = 1270, 300_000
PAUSES_S = (0.2, 1.0, 3.0, 8.0)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    for name, data in {"report": with_steps(), "profiles": profiles_of_record()}.items():
        write_page(folder / f"{name}.html", data)
    return {path.stem: path for path in folder.iterdir()}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["report", "profiles"])
def test_it_fits_draws_its_plots_and_asks_for_nothing(
    driver: Any, pages: dict[str, Path], name: str, width: int, theme: str, tmp_path: Path
) -> None:
    driver.get_log("performance")
    look_at(driver, pages[name], width, theme)
    assert driver.get_log("browser") == []
    page = pages[name].as_uri()
    assert requests(driver.get_log("performance"), page) - {"data:,"} == {page}
    assert driver.execute_script("return document.documentElement.scrollWidth") == width
    assert overflowing(driver) == []
    kinds = driver.execute_script("return [...document.querySelectorAll('figure')].map(one => one.dataset.chart)")
    assert {"bars", "points", "forest", "falls"} <= set(kinds)
    assert driver.execute_script(
        "return [...document.querySelectorAll('svg.plot')].every(one => one.clientWidth > 100)"
    )
    assert lightness(driver) > 200 if theme == "light" else lightness(driver) < 50
    keep(f"{name}-{width}-{theme}.png", screenshot(driver, width, IMAGE_HEIGHT), tmp_path)


def test_the_button_switches_the_theme_and_the_choice_stays(driver: Any, pages: dict[str, Path]) -> None:
    look_at(driver, pages["report"], 1280, "light")
    driver.execute_script("document.getElementById('theme').click()")
    assert lightness(driver) < 50
    assert opened_again(driver, pages["report"]) < 50
    driver.execute_script("document.getElementById('theme').click()")
    assert lightness(driver) > 200
    driver.execute_script("localStorage.clear()")


def test_a_script_that_got_into_the_page_would_not_run(driver: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    evil = tmp_path / "evil.html"
    text = pages["report"].read_text(encoding="utf-8")
    evil.write_text(text.replace("</main>", "<script>window.ran = 1</script></main>"), encoding="utf-8")
    look_at(driver, evil, 1280, "light")
    assert driver.execute_script("return window.ran") is None
    assert "Content Security Policy" in str(driver.get_log("browser"))


def opened_again(driver: Any, page: Path) -> float:
    """The lightness of the dark page opened anew. A page that is left at once may take its choice with it, before the
    browser has put it away: then it is chosen again and left later."""
    for pause_s in PAUSES_S:
        if lightness(driver) > 50:
            driver.execute_script("document.getElementById('theme').click()")
        time.sleep(pause_s)
        look_at(driver, page, 1280, "light")
        if lightness(driver) < 50:
            break
    return lightness(driver)


def requests(log: list[dict[str, Any]], page: str) -> set[str]:
    """What this page asked for (the browser's own start page asks, too), whether or not it came."""
    messages = [json.loads(entry["message"])["message"] for entry in log]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return {one["request"]["url"] for one in sent if one["documentURL"] == page}


def overflowing(driver: Any) -> list[str]:
    """Texts that are wider than the place they have."""
    return driver.execute_script(
        "return [...document.querySelectorAll('p, h1, h2, h3, dd, dt, td, th, li, span, code')]"
        ".filter(one => one.getBoundingClientRect().right > innerWidth).map(one => one.textContent)"
    )


def lightness(driver: Any) -> float:
    colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    return sum(map(float, colour.removeprefix("rgb(").removesuffix(")").split(","))) / 3


def keep(name: str, image: bytes, folder: Path) -> None:
    """Put a screenshot where it is asked for; the README shows one of them."""
    assert image.startswith(b"\x89PNG")
    assert len(image) < IMAGE_BYTES
    wanted = os.environ.get("INFERENCE_PIO_IMAGES")
    if wanted and name == "report-1280-light.png":
        folder = Path(wanted)
        folder.mkdir(parents=True, exist_ok=True)
        name = "report.png"
    (folder / name).write_bytes(image)
