"""The page in a browser: it loads nothing, says what the table says, and works by keyboard.

Collected where Chromium and its driver are installed; see tests/conftest.py.
"""

from __future__ import annotations

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from dqar_fx import graph_diff
from dqar_fx.schedule.schedule import Schedule
from tests.helpers.headless_browser import open_page, requests_of
from tests.helpers.slow_cases import slow_but
from tests.helpers.small_reports import STEPS, make_guided_report, make_report

MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def report():
    return make_report(sites="all")


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "page.html"
    report.to_html(path)
    return path


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    with open_page(page, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(autouse=True)
def no_error(browser):
    """No test leaves an error in the console."""
    yield
    assert browser.get_log("browser") == []


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def cells_of(browser, selector=".heat"):
    rows = browser.find_elements(By.CSS_SELECTOR, f"{selector} tbody tr")
    return [row.find_elements(By.TAG_NAME, "td") for row in rows]


def text_of(browser, selector):
    return find(browser, selector).text


def test_page_asks_for_itself_alone(browser, page):
    asked = [url for url in requests_of(browser, page) if not url.startswith("data:")]
    assert asked == [page.as_uri()]


def test_heat_map_is_the_table(browser, report):
    table = report.denoiser.table
    shown = browser.execute_script(
        "return [...document.querySelectorAll('.heat tbody tr')].map(row => "
        "[...row.querySelectorAll('td')].map(cell => [cell.classList[0], cell.innerText]))"
    )
    letters = [[row[column].letter for row in map(table.row, range(STEPS))]
               for column in range(len(table.sites))]  # fmt: skip
    assert [[letter for letter, _ in row] for row in shown] == letters
    for column, row in enumerate(shown):
        for step, (letter, text) in enumerate(row):
            source = int(table.sources[step, column])
            assert text == (letter if source < 0 else str(step - source))
    names = [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".heat tbody th")]
    assert names == list(table.sites)


def test_hovering_a_cell_shows_its_reason(browser, report):
    cells = cells_of(browser)
    for step, site in ((STEPS - 1, 3), (0, 0), (3, 1)):
        ActionChains(browser).move_to_element(cells[site][step]).perform()
        assert text_of(browser, "#tip") == report.denoiser.table.why(step, site)
    ActionChains(browser).move_to_element(find(browser, "h1")).perform()
    assert not find(browser, "#tip").is_displayed()


@pytest.mark.parametrize(
    ("step", "site"), slow_but((4, 0), of=[(STEPS - 1, 2), (4, 0), (0, 5)])
)
def test_clicking_a_cell_shows_its_rows_diff(browser, report, step, site):
    table, program = report.denoiser.table, report.denoiser.program
    cells_of(browser)[site][step].click()
    assert text_of(browser, "#reason") == table.why(step, site)
    computed = program.with_table(Schedule.compute_all(1).resolve(table.sites)).row_graph(0)
    diff = graph_diff(computed, report.denoiser.row_graph(step))
    expected = {
        f"{name} {'+' if count > 0 else MINUS}{abs(count)}"
        for name, count in diff.delta.items()
    }
    shown = browser.find_elements(By.CSS_SELECTOR, "#delta li")
    assert {each.text for each in shown} == expected
    removed = removed_of_all_blocks(browser)
    assert removed == sum(map(len, diff.removed.values()))


def removed_of_all_blocks(browser):
    """How many lines are struck, the blocks one after the other; inputs of blocks left out."""
    picker = Select(find(browser, "#block"))
    total = 0
    for number in range(len(picker.options)):
        picker.select_by_index(number)
        gone = browser.find_elements(By.CSS_SELECTOR, "#graph .b.gone")
        total += sum(not line.text.endswith("= input") for line in gone)
    return total


def test_clicked_cell_shows_its_own_block(browser, report):
    table = report.denoiser.table
    cells_of(browser)[4][STEPS - 1].click()
    picked = Select(find(browser, "#block")).first_selected_option.text
    assert picked.partition(":")[0] == table.sites[4].rpartition(".")[0]
    slots = browser.find_elements(By.CSS_SELECTOR, "#graph .a.slot")
    assert [slot.text.partition(" = ")[2] for slot in slots] == [
        "read(slot[attn1])",
        "read(slot[ff])",
    ]
    assert len(browser.find_elements(By.CSS_SELECTOR, "#graph svg rect")) == 2
    struck = find(browser, "#graph .b.gone").value_of_css_property("text-decoration-line")
    assert struck == "line-through"


def test_keyboard_walks_and_picks(browser, report):
    table = report.denoiser.table
    cells_of(browser)[0][0].click()
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    assert text_of(browser, "#tip") == table.why(2, 1)
    press(browser, Keys.END)
    assert text_of(browser, "#tip") == table.why(STEPS - 1, 1)
    press(browser, Keys.ARROW_RIGHT)  # there is none
    assert text_of(browser, "#tip") == table.why(STEPS - 1, 1)
    press(browser, Keys.ENTER)
    assert text_of(browser, "#reason") == table.why(STEPS - 1, 1)
    press(browser, Keys.HOME, Keys.ARROW_UP, Keys.ARROW_UP)
    assert text_of(browser, "#tip") == table.why(0, 0)
    press(browser, Keys.ESCAPE)
    assert not find(browser, "#tip").is_displayed()
    stops = browser.find_elements(By.CSS_SELECTOR, '.heat td[tabindex="0"]')
    assert len(stops) == 1


def press(browser, *keys):
    ActionChains(browser).send_keys(*keys).perform()


def test_graph_lines_light_what_they_read(browser):
    cells_of(browser)[0][STEPS - 1].click()
    browser.execute_script("document.getElementById('graph').focus()")
    press(browser, *[Keys.ARROW_DOWN] * 30)
    for _ in range(30):
        if text_of(browser, "#line").startswith("add"):
            break
        press(browser, Keys.ARROW_UP)
    lit = browser.find_elements(By.CSS_SELECTOR, "#graph path.lit")
    read = browser.find_elements(By.CSS_SELECTOR, "#graph li.in")
    after = browser.find_elements(By.CSS_SELECTOR, "#graph li.out")
    assert len(read) == 2
    assert len(lit) == len(read) + len(after)


@pytest.mark.parametrize("scheme", slow_but("dark", of=["light", "dark"]))
@pytest.mark.parametrize("width", [1280, 400])
def test_page_fits_and_contrasts(page, tmp_path, width, scheme):
    with open_page(page, tmp_path, width=width, scheme=scheme) as browser:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        pairs = browser.execute_script(COLOURS)
        assert browser.get_log("browser") == []
    assert len(pairs) > 10
    for name, ink, paper in pairs:
        assert contrast(ink, paper) >= 4.5, (name, ink, paper)


COLOURS = """
const own = (element) => getComputedStyle(element).backgroundColor;
const paper = (element) => {
  while (element && own(element) === "rgba(0, 0, 0, 0)") element = element.parentElement;
  return own(element || document.body);
};
const chosen = "p, dt, dd, .heat td, .heat th, .key, .list td, .list th, #delta li, " +
  "#graph span, summary, nav a, option";
return [...document.querySelectorAll(chosen)].filter((each) => each.textContent.trim()).map(
  (each) => [each.className, getComputedStyle(each).color, paper(each)]);
"""


def contrast(ink, paper):
    """The ratio of luminances as WCAG 2 defines it."""
    high, low = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour):
    numbers = [
        float(part) / 255 for part in colour.partition("(")[2].rstrip(")").split(",")[:3]
    ]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in numbers]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_page_prints(browser):
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    assert printed["data"].startswith("JVBERi0")  # %PDF-


@pytest.mark.slow
def test_two_streams_have_a_heat_map_each(tmp_path):
    report = make_guided_report()
    report.to_html(tmp_path / "page.html")
    with open_page(tmp_path / "page.html", tmp_path / "profile") as browser:
        cells = cells_of(browser, '.heat[data-stream="1"]')
        cells[0][2].click()
        assert "not called" in text_of(browser, "#reason")
        cells[0][3].click()
        assert text_of(browser, "#reason") == report.denoiser.unconditional.table.why(3, 0)
        assert browser.get_log("browser") == []
