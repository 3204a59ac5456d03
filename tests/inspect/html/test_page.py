"""The page as a file: what it says, and that it needs nothing else."""

from __future__ import annotations

import json
import re

import pytest

from dqar_fx import DqarError, Report, Schedule
from dqar_fx.inspect.html.facts import generalise, quantity
from dqar_fx.inspect.html.page import make_content, render
from dqar_fx.inspect.html.stream import draw_chart
from dqar_fx.inspect.summary import ranges
from tests.helpers.small_reports import FORECAST, STEPS, make_guided_report, make_report


@pytest.fixture(scope="module")
def report():
    return make_report()


@pytest.fixture(scope="module")
def content(report):
    return make_content(report, report.denoiser)


def test_cells_are_the_table_with_ages(report, content):
    table = report.denoiser.table
    (stream,) = content["streams"]
    for column, site in enumerate(stream["sites"]):
        for step, (classes, text) in enumerate(site["cells"]):
            letter = table.row(step)[column].letter
            source = int(table.sources[step, column])
            assert classes.split()[0] == letter
            assert text == (letter if source < 0 else str(step - source))


def test_reasons_are_the_tables_and_kept_once(report, content):
    table, data = report.denoiser.table, content["data"]
    for column, cells in enumerate(data["streams"][0]["cells"]):
        for step, (text, _) in enumerate(cells):
            where = table.where(step, column)
            assert f"{where}: {data['texts'][text]}" == table.why(step, column)
    assert len(set(data["texts"])) == len(data["texts"]) < table.actions.size


def test_covered_and_forecast_cells_have_classes_of_their_own():
    report = make_report(schedule=FORECAST, sites=["block", "all"])
    (stream,) = make_content(report, report.denoiser)["streams"]
    classes = {c.split()[0] for site in stream["sites"] for c, _ in site["cells"]}
    assert classes == {"S", "F", "I", "C"}


def test_guided_report_has_both_streams():
    report = make_guided_report()
    streams = make_content(report, report.denoiser)["streams"]
    assert [stream["name"] for stream in streams] == ["conditional", "unconditional"]
    not_called = [step for step in range(STEPS) if streams[1]["row_of_step"][step] is None]
    assert not_called == [2, 4, 6]
    assert {streams[1]["sites"][0]["cells"][step] for step in not_called} == {("N", "-")}
    assert "unconditional stream" in render(report)


def test_page_loads_nothing(report):
    page = render(report)
    assert not re.search(r"<(?:script|img|iframe|object|embed)[^>]*\ssrc=", page)
    assert re.findall(r'<link[^>]*href="([^"]*)"', page) == ["data:,"]
    assert "default-src 'none'" in page
    for found in re.findall(r"https?://[^\s\"'<]+", page):
        assert found == "http://www.w3.org/2000/svg"  # a name, not an address


def test_texts_of_the_model_are_escaped(report, monkeypatch):
    evil = "</script><b onclick='x'>&"
    model = report.denoiser.model
    monkeypatch.setattr(model, "__class__", type(evil, (type(model),), {}))
    page = render(report)
    assert evil not in page
    assert "&lt;/script&gt;&lt;b onclick=" in page
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert set(json.loads(data)) == {"streams", "calls", "columns", "diffs", "texts"}


def test_report_of_json_has_no_page(report, tmp_path):
    read = Report.from_json(report.to_json())
    assert read == report
    with pytest.raises(DqarError, match="was read from JSON"):
        read.to_html(tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_slots_are_those_of_the_program(report, content):
    assert sum(slot["nbytes"] for slot in content["slots"]) == report.cache_bytes
    assert [slot["site"] for slot in content["slots"]] == list(report.denoiser.table.sites)
    assert not any(slot["lenders"] for slot in content["slots"])


def test_slots_that_share_name_whose_they_use():
    schedule = Schedule.from_actions(["CRCCCCCC", "CCCRCCCC", *["CCCCCCCC"] * 3])
    report = make_report(schedule=schedule)
    first, second = make_content(report, report.denoiser)["slots"]
    assert (first["nbytes"], second["nbytes"]) == (report.cache_bytes, 0)
    assert (first["lenders"], second["lenders"]) == ("", first["site"])
    assert "saved by sharing slots" in section_of(render(report))


def section_of(page):
    """The text of the page's section on memory, without the list of slots."""
    return re.search(r'<section id="memory">(.*?)<details', page, re.DOTALL)[1]


@pytest.mark.parametrize("make", [make_report, make_guided_report])
def test_memory_is_the_whole_plan(make):
    report = make()
    plan = report.denoiser.memory
    pattern = (
        r'<tr( class="sum")?><th scope="row" class="text">(.*?)</th>'
        r'<td class="text">(.*?)</td><td>(.*?)</td>'
    )
    found = re.findall(pattern, section_of(render(report)))
    assert found == [
        (' class="sum"' * line.is_sum, line.name, line.stream, f"{line.nbytes / 1e6:.3f}")
        for line in plan.lines(max_sites=0)
    ]
    assert {"parameters of the step", "held between steps"} <= {name for _, name, *_ in found}


def test_removed_lines_are_the_diffs(report, content):
    for diff in content["data"]["diffs"]:
        for number, line in enumerate(diff["lines"]):
            assert all(source < number for source in line.get("i", ()))
            assert ("b" in line) == (line["s"] in "=-~")
            assert ("a" in line) == (line["s"] in "+~")


def test_chart_bars_are_the_costs(report):
    chart = draw_chart([row.costs for row in report.rows] + [None])
    heights = [sum(float(part["height"]) for part in bar["parts"]) for bar in chart["bars"]]
    highest = max(row.cost.ms for row in report.rows)
    expected = [200 * row.cost.ms / highest for row in report.rows]
    assert heights == pytest.approx([*expected, 0], abs=0.1)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 "), (999, "999 "), (1.5e6, "1.5 M"), (118.42e9, "118.4 G")]
)
def test_quantity_has_a_prefix(value, text):
    assert quantity(value) == text


def test_ranges_and_stars():
    assert ranges([0, 1, 2, 5, 7, 8], ", ") == "0-2, 5, 7-8"
    assert generalise("a.12.b.3") == "a.*.b.*"
    assert generalise("norm1.linear") == "norm1.linear"
