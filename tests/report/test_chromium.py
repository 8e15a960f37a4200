"""The report in a real browser: what models wrote stays text, and filters work by click and by keyboard."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pretend_runs import NUM_PUZZLES, baseline_run, train_run
from rich.console import Console

from nsr.config import ReportConfig
from nsr.report.report import report

pytestmark = pytest.mark.browser

EVIL = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "<svg onload='window.hacked = 1'>\x1b[2J\x00\ud800\u2028{{ 7 * 7 }}"
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    baseline_run(folder)
    train_run(folder, "NSR", text=EVIL)
    train_run(folder, "PSR", text="x" * 100_000)
    train_run(folder, "</script><b>", name="odd")  # nobody's objective, but a folder may say so
    return report(ReportConfig(folders=(str(folder),)), Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -e '.[dev]'")
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    chromedriver = shutil.which("chromedriver")
    if binary is None or chromedriver is None:
        pytest.skip("needs Chromium and its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield made
    made.quit()


@pytest.fixture
def opened(driver: Any, page: Path) -> Any:
    driver.get(page.as_uri())
    return driver


def texts(driver: Any, selector: str) -> list[str]:
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((element) => element.textContent)", selector
    )


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def chip(driver: Any, kind: str, name: str) -> Any:
    chips = driver.find_elements("css selector", f"#filter-{kind} button")
    return next(button for button in chips if button.get_attribute("textContent").startswith(name))


def press(driver: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(driver).send_keys(*keys).perform()


def test_no_script_of_a_model_runs_and_nothing_goes_wrong(opened: Any) -> None:
    assert opened.get_log("browser") == []
    assert opened.execute_script("return window.hacked") is None
    assert opened.title == "What training did to tiny · nsr report"
    chip(opened, "method", "NSR").click()
    shown = texts(opened, "#list pre")
    assert shown
    assert set(shown) == {EVIL.replace("\x1b", r"\x1b").replace("\x00", r"\x00").replace("\ud800", r"\ud800")
                          .replace("\u2028", r"\u2028")}  # fmt: skip
    assert opened.execute_script("return document.querySelectorAll('#list img, #list script, #list svg').length") == 0
    assert opened.execute_script("return document.querySelectorAll('script').length") == 2
    assert "</script><b>, λ 0.1" in "".join(texts(opened, ".results"))
    assert opened.execute_script("return document.querySelectorAll('main b').length") == 0
    assert opened.get_log("browser") == []
    assert opened.execute_script("return window.hacked") is None


def test_what_a_page_may_run_is_its_own_script_alone(opened: Any) -> None:
    """Even markup that got in would run nothing: the page's policy says so to the browser."""
    opened.execute_script(
        "const script = document.createElement('script'); script.textContent = 'window.hacked = 2';"
        "document.body.append(script);"
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked = 3\">')"
    )
    assert opened.execute_script("return window.hacked") is None
    assert any("Content Security Policy" in entry["message"] for entry in opened.get_log("browser"))


def test_filters_by_click(opened: Any) -> None:
    everything = texts(opened, "#count")
    assert everything == [f"24 of {4 * 4 * NUM_PUZZLES} samples"]
    chip(opened, "verdict", "correct").click()
    assert set(texts(opened, "#list .verdict")) == {"correct"}
    chip(opened, "method", "PSR").click()
    assert set(texts(opened, "#list .sample-from")) == {"PSR"}
    assert set(texts(opened, "#list .verdict")) == {"correct"}
    find(opened, "#puzzle-next").click()
    first = find(opened, "#filter-puzzle").find_elements("css selector", "option")[1].get_attribute("textContent")
    assert set(texts(opened, "#list .sample-puzzle")) == {first}
    count = len(texts(opened, "#list .sample"))
    assert texts(opened, "#count") == [f"{count} of {count} samples"]
    assert chip(opened, "verdict", "correct").get_attribute("aria-pressed") == "true"
    assert chip(opened, "verdict", "all").get_attribute("aria-pressed") == "false"
    # The number on a chip is what it will show.
    tally = chip(opened, "verdict", "wrong value").get_attribute("textContent").removeprefix("wrong value")
    chip(opened, "verdict", "wrong value").click()
    assert len(texts(opened, "#list .sample")) == int(tally)
    find(opened, "#puzzle-before").click()
    chip(opened, "method", "all").click()
    chip(opened, "verdict", "all").click()
    assert texts(opened, "#count") == everything


def test_filters_by_keyboard(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    opened.execute_script("document.querySelector('#filter-method button').focus()")
    press(opened, Keys.TAB, Keys.TAB, Keys.ENTER)
    (name,) = set(texts(opened, "#list .sample-from"))
    assert name == texts(opened, "#filter-method button")[2].rstrip("0123456789")
    press(opened, ".")
    (second,) = set(texts(opened, "#list .sample-puzzle"))
    press(opened, ".")
    (third,) = set(texts(opened, "#list .sample-puzzle"))
    assert second != third
    press(opened, ",")
    assert set(texts(opened, "#list .sample-puzzle")) == {second}
    for _ in range(3):  # over the other methods' chips into those of verdicts
        press(opened, Keys.TAB)
    press(opened, Keys.TAB, Keys.SPACE)
    pressed = opened.execute_script(
        "return [...document.querySelectorAll('#filter-verdict button[aria-pressed=true]')].map((b) => b.textContent)"
    )
    assert not pressed[0].startswith("all")
    press(opened, Keys.ESCAPE)
    assert texts(opened, "#count") == [f"24 of {4 * 4 * NUM_PUZZLES} samples"]
    opened.execute_script("document.querySelector('#filter-puzzle').focus()")
    press(opened, Keys.ARROW_DOWN)
    assert set(texts(opened, "#list .sample-puzzle")) == {second}


def test_more_are_shown_when_asked_for(opened: Any) -> None:
    find(opened, "#more").click()
    assert len(texts(opened, "#list .sample")) == 48


def test_one_method_can_be_lit_in_every_figure(opened: Any) -> None:
    button = find(opened, "button.focus[data-focus=m2]")
    button.click()
    dim, lit = (
        opened.execute_script(
            "return [...document.querySelectorAll('.panel .m')]"
            ".filter((e) => e.classList.contains('m2') === arguments[0]).map((e) => e.classList.contains('lit'))",
            which,
        )
        for which in (False, True)
    )
    assert dim
    assert not any(dim)
    assert lit
    assert all(lit)
    button.click()
    assert opened.execute_script("return document.querySelectorAll('.lit').length") == 0


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_nothing_sticks_out_at_any_width(width: int, opened: Any) -> None:
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for element in opened.find_elements("css selector", "details"):
        opened.execute_script("arguments[0].open = true", element)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    assert opened.execute_script("return document.querySelector('.legend .swatch').getBoundingClientRect().width") > 20
    small = opened.execute_script(
        "const texts = [...document.querySelectorAll('.panel svg text')];"
        "return Math.min(...texts.map((element) => element.getBoundingClientRect().height))"
    )
    assert small > 8  # pixels, of the smallest writing in a figure


def test_light_and_dark(opened: Any) -> None:
    def colors(scheme: str) -> tuple[str, str, str]:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return tuple(
            opened.execute_script(
                "const style = (name) => getComputedStyle(document.querySelector(name));"
                "return [style('body').backgroundColor, style('body').color, style('.panel svg text').fill]"
            )
        )

    light, dark = colors("light"), colors("dark")
    assert light[0] == "rgb(255, 255, 255)"
    for place in range(3):
        assert light[place] != dark[place]


def test_prints_to_paper(opened: Any) -> None:
    printed = opened.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
    assert len(printed) > 10_000
