"""explain tells sites, near misses, passes and actions, in words and as JSON."""

import json
from functools import cache

import pytest
import torch
from torch import nn

import dqar_fx
from dqar_fx import Guidance, Schedule
from dqar_fx.schedule.action import Action
from tests.helpers.inspected_denoisers import MODELS, STEPS, prepared
from tests.helpers.models import Attention, make_dit

every_model = pytest.mark.parametrize("name", MODELS)


class Gated(nn.Module):
    """A site, and one attention that does not read the latent."""

    def __init__(self):
        super().__init__()
        self.refiner, self.attention = Attention(16), Attention(16)

    def forward(self, x, timestep, text):
        return self.attention(x + self.refiner(text)) * timestep.reshape(-1, 1, 1)


@cache
def gated():
    inputs = {"x": torch.zeros(2, 5, 16), "timestep": torch.zeros(2)}
    inputs["text"] = torch.zeros(2, 5, 16)
    return dqar_fx.transform(Gated().eval(), Schedule.compute_all(1), example_inputs=inputs)


def cells(explanation):
    return [cell for row in explanation.rows for cell in row.cells]


# ---- actions -----------------------------------------------------------------------------


@every_model
def test_explain_has_the_table_by_sites(name):
    denoiser = prepared(name)
    table, found = denoiser.table, denoiser.explain()
    assert tuple(row.site for row in found.rows) == table.sites
    for row, column in zip(found.rows, table.actions.T, strict=True):
        assert row.actions == "".join(Action(a).letter for a in column)
        assert [cell.step for cell in row.cells] == list(range(STEPS))
    whys = [table.why(step, site) for site in table.sites for step in range(STEPS)]
    assert [cell.why for cell in cells(found)] == whys


@every_model
def test_explain_ages_are_of_what_is_read(name):
    for row in prepared(name).explain().rows:
        stored = None
        for cell in row.cells:
            if cell.action == "REUSE":
                assert (cell.source, cell.age) == (stored, cell.step - stored)
            else:
                assert (cell.source, cell.age) == (None, None)
            stored = cell.step if cell.action == "STORE" else stored
        assert row.max_age == max(cell.age or 0 for cell in row.cells)


def test_explain_of_a_step_has_that_step():
    denoiser = prepared("dit")
    found = denoiser.explain(5)
    assert [cell.step for cell in cells(found)] == [5] * 5
    assert cells(found) == [row.cells[5] for row in denoiser.explain().rows]
    assert f"{cells(found)[0].why} (" in str(found)
    assert "steps old)" in str(found)


@pytest.mark.parametrize("step", [-1, STEPS, 100])
def test_explain_of_a_step_outside_of_the_table_is_refused(step):
    with pytest.raises(dqar_fx.StepError, match=f"no step {step}: the branch table has 8"):
        prepared("dit").explain(step)


def test_explain_of_forecasts_tells_the_newest_that_is_read():
    schedule = Schedule.interval(STEPS, every=3, warmup=3).forecast(1)
    row = prepared("dit", schedule=schedule).explain().rows[0]
    read = [cell for cell in row.cells if cell.action == "FORECAST"]
    assert read
    assert all(1 <= cell.age <= 2 for cell in read)
    assert "F" in row.actions


def test_explain_of_guidance_has_both_streams():
    case = make_dit(layers=2)
    denoiser = dqar_fx.transform(
        case.model,
        Schedule.from_actions("CSRR"),
        guidance=Guidance(Schedule.from_actions("SRSR"), batched="conditional_first"),
        example_inputs=case.inputs(0),
    )
    found = denoiser.explain()
    told = [(row.stream, row.actions) for row in found.rows]
    assert told == [(0, "CSRR")] * 2 + [(1, "SRSR")] * 2
    assert "transformer_blocks.1.attn1 (unconditional)  SRSR  oldest read 1 steps" in str(
        found
    )
    assert len(denoiser.explain(2).rows) == 4
    assert "(unconditional)" in str(denoiser.explain(2))
    assert json.loads(found.to_json())["guidance"] == found.guidance


# ---- sites, near misses, passes ----------------------------------------------------------


def test_explain_near_miss_has_reason_and_source():
    (miss,) = json.loads(gated().explain().to_json())["near_misses"]
    assert miss["reason"].startswith("attention that does not depend on the latent")
    assert miss["path"] == "refiner"
    file, line = miss["source"].split(":")
    assert (file, line.isdigit()) == ("models.py", True)
    assert f"({miss['source']})" in str(gated().explain())


def test_explain_passes_say_what_changed():
    reports = prepared("dit").explain().reports
    changes = {report.name: dict(report.delta) for report in reports if report.graph == "step"}
    assert changes["insert_guards"] == {"compute_or_reuse": 5}
    assert changes["outline_regions"] == {"region": 7}
    assert changes["hoist_conditioning"]["stage"] == 3
    assert changes["normalise"]["aten.dropout.default"] == -10
    text = str(prepared("dit").explain())
    assert "\n      compute_or_reuse +5\n" in text
    assert "aten.dropout.default -10" in text


def test_explain_passes_on_regions_say_what_changed():
    case = make_dit(layers=2)
    denoiser = dqar_fx.transform(case.model, Schedule.from_actions("SR"))
    for step in range(2):
        denoiser(**case.inputs(step))
    deltas = [r.delta for r in denoiser.explain().reports if r.name == "specialise"]
    assert {"compute_or_reuse": -1, "aten.copy_.default": 1} in deltas
    reused = [delta for delta in deltas if "read slot" in delta]
    assert reused
    assert all(delta["aten.linear.default"] == -4 for delta in reused)


@every_model
def test_explain_json_tells_all_of_it(name):
    found = prepared(name).explain(3)
    content = json.loads(found.to_json())
    names = ["sites", "left_out", "near_misses", "passes", "rows", "tier"]
    assert list(content) == names
    assert [site["path"] for site in content["sites"]] == [s.path for s in found.sites]
    assert [site["source"] for site in content["sites"]] == [s.source for s in found.sites]
    assert content["sites"][0]["kept"][0] == {
        "shape": list(found.sites[0].kept[0].shape),
        "dtype": "float32",
    }
    assert len(content["left_out"]) == len(found.left_out)
    assert [each["name"] for each in content["passes"]] == [r.name for r in found.reports]
    assert [each["delta"] for each in content["passes"]] == [r.delta for r in found.reports]
    assert [row["cells"][0]["why"] for row in content["rows"]] == [c.why for c in cells(found)]


def test_explain_is_a_value():
    denoiser = prepared("pixart")
    assert denoiser.explain(2) == denoiser.explain(2)
    assert denoiser.explain(2) != denoiser.explain(3)
