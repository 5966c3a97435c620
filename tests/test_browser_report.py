"""The report in a real browser: no console errors, images drawn, the list by keyboard, phone, dark."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from browser_driver import chromium, console_errors
from PIL import Image
from report_records import write_results, write_run

from reslib.cli import main
from reslib.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
RUNS = 230  # more than two pages of the list


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = write_results(tmp_path_factory.mktemp("browser") / "results")
    for seed in range(RUNS - 6):
        write_run(root / "paper" / "runs", Recipe("resnet20", seed=seed), test_error=0.08 + seed / 10_000)
    assert main(["report", "--results", str(root)]) == 0
    return (root / "report.html").as_uri()


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The report of this repository's own records, figures and tables."""
    page = tmp_path_factory.mktemp("real") / "report.html"
    assert main(["report", "--results", str(ROOT / "results"), "--out", str(page)]) == 0
    return page.as_uri()


@pytest.fixture(scope="module")
def browser(address):
    with chromium() as driver:
        driver.get(address)
        yield driver


def text(browser, selector):
    return browser.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def column(browser, number):
    script = "return [...document.querySelectorAll('#runs-table tbody tr')].map(r => r.cells[arguments[0]].textContent)"
    return browser.execute_script(script, number)


def test_nothing_is_missing(browser):
    sizes = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth])")
    assert sizes == [[True, 1]]
    assert console_errors(browser) == []


def check_links(browser, least):
    """All links resolve, as the browser itself reads them, with quoting."""
    links = browser.execute_script("return [...document.links].map(a => a.href)")
    assert len(links) >= least
    for link in links:
        parts = urlsplit(link)
        assert parts.scheme == "file" and Path(unquote(parts.path)).exists(), link
        if parts.fragment:
            assert browser.execute_script("return !!document.getElementById(arguments[0])", unquote(parts.fragment))


def test_all_links_resolve(browser):
    check_links(browser, 300)


def test_the_real_report_shows_every_figure(real):
    """Each figure that is on disk, as large as it was drawn, visible and with words for who cannot see it."""
    drawn = {path: Image.open(path).size for path in sorted((ROOT / "results").glob("*/figures/*.png"))}
    facts = "i => [i.complete, i.naturalWidth, i.naturalHeight, i.clientWidth, i.alt]"
    with chromium() as driver:
        driver.get(real)
        shown = driver.execute_script(f"return [...document.images].map({facts})")
        assert len(drawn) > 3 and sorted(tuple(size) for _, *size, _, _ in shown) == sorted(drawn.values())
        for complete, width, height, seen, text in shown:
            assert complete and width > 400 and height > 200 and seen > 200 and len(text) > 5, (text, width, height)
        check_links(driver, len(drawn) + 30)
        assert console_errors(driver) == []


def test_the_skip_link_is_the_first_stop(browser, address):
    from selenium.webdriver.common.keys import Keys

    browser.get(address)
    browser.switch_to.active_element.send_keys(Keys.TAB)
    focused = browser.switch_to.active_element
    assert focused.text == "Skip to the results" and focused.location["x"] >= 0
    outline = browser.execute_script("return getComputedStyle(arguments[0]).outlineWidth", focused)
    assert outline == "3px"
    focused.send_keys(Keys.ENTER)
    assert browser.execute_script("return document.activeElement.id") == "main"


def test_sorting_filtering_and_pages_by_keyboard(browser, address):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get(address)
    assert text(browser, "#runs-count") == f"Runs 1 to 100 of {RUNS}"
    button = browser.find_elements(By.CSS_SELECTOR, "#runs-table thead button")[6]
    button.send_keys(Keys.ENTER)
    errors = column(browser, 6)
    assert errors[0] == "6.97" and [float(e) for e in errors] == sorted(float(e) for e in errors)
    assert browser.find_element(By.CSS_SELECTOR, "th[aria-sort=ascending]").text.startswith("test error")
    button.send_keys(Keys.SPACE)
    assert column(browser, 6)[0] == "60.00"
    browser.find_element(By.ID, "runs-next").send_keys(Keys.ENTER)
    browser.find_element(By.ID, "runs-next").send_keys(Keys.ENTER)
    assert text(browser, "#runs-count") == f"Runs 201 to {RUNS} of {RUNS}"
    assert column(browser, 6)[-2:] == ["", ""]  # the diverged and the interrupted run have no error and come last
    field = browser.find_element(By.ID, "runs-filter")
    field.send_keys("smoke <script>")
    assert column(browser, 2) == ["my.nets:<script>alert(1)</script>"]
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("no such run")
    assert text(browser, "#runs-count") == "No run matches."
    assert console_errors(browser) == []


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_of_text(address, dark):
    """WCAG AA, 4.5 to 1, for the colours that text has, in both schemes."""
    with chromium(dark=dark) as driver:
        driver.get(address)
        style = "getComputedStyle(document.documentElement).getPropertyValue"
        colours = {n: driver.execute_script(f"return {style}('--{n}').trim()") for n in
                   ("bg", "card", "ink", "soft", "link", "good", "bad", "warn")}  # fmt: skip
        background = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")
    for name in ("ink", "soft", "link", "good", "bad", "warn"):
        for ground in ("bg", "card"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)


def contrast(one, two):
    return (max(light := (luminance(one), luminance(two))) + 0.05) / (min(light) + 0.05)


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * c for c in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("page", ["address", "real"])
def test_a_phone_scrolls_in_one_direction(page, request):
    with chromium(390, 844) as driver:
        driver.get(request.getfixturevalue(page))
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
        widths = driver.execute_script(
            "return [...document.querySelectorAll('.board')].map(t => t.scrollWidth - t.parentNode.clientWidth)"
        )
        assert max(widths) <= 0  # the scoreboard needs no sideways scrolling at all
        size = driver.execute_script("return parseFloat(getComputedStyle(document.querySelector('td')).fontSize)")
        assert size >= 13


def test_without_script_the_first_runs_stand_there(address):
    with chromium() as driver:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        driver.get(address)
        from selenium.webdriver.common.by import By

        assert len(driver.find_elements(By.CSS_SELECTOR, "#runs-table tbody tr")) == 100
        assert not driver.find_element(By.ID, "runs-tools").is_displayed()
        assert "results.csv" in driver.find_element(By.CSS_SELECTOR, "noscript").text
