"""SmoothCache: its scan and its lookup again in plain loops, and damaged files."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dqar_fx
from dqar_fx.prior_art import read_smoothcache, smoothcache
from tests.helpers.models import make_dit
from tests.helpers.prior_art_decisions import (
    FEW,
    MODEL,
    bits_of,
    error_of,
    layers_measured,
    sites_of,
)
from tests.helpers.table_texts import texts_of

# ---- by calibration ------------------------------------------------------------------------


def smoothcache_scan(change, threshold, lookahead):
    """1 and 0 per step, by its scan over rows of errors: ``change[step][layer][age - 1]``."""
    steps = len(change)
    rows = [
        [np.mean(change[start + age, :, age - 1]) for start in range(steps - age)]
        for age in range(1, min(lookahead, steps - 1) + 1)
    ]
    plan, step = [1] * steps, 0
    while step < steps:
        far = [age for age, row in enumerate(rows, 1) if step < len(row)]
        good = [age for age in far if rows[age - 1][step] <= threshold]
        skipped = max(good, default=0)
        for after in range(step + 1, step + 1 + skipped):
            plan[after] = 0
        step += skipped + 1
    plan[0] = plan[-1] = 1
    return plan


@FEW
@given(
    st.integers(0, 10**6),
    st.integers(1, 25),
    st.floats(0, 0.5),
    st.integers(1, 4),
    st.booleans(),
)
def test_smoothcache_equals_its_scan(seed, steps, threshold, lookahead, reverse):
    calibration = layers_measured(seed, steps)
    schedule = smoothcache(calibration, threshold, lookahead=lookahead)
    order = calibration.sites[::-1] if reverse else calibration.sites
    table = schedule.resolve(order)
    for path, text in zip(order, texts_of(table), strict=True):
        layers = [i for i, site in enumerate(calibration.sites) if site[-2:] == path[-2:]]
        plan = smoothcache_scan(calibration.change[:, layers], threshold, lookahead)
        assert [int(letter != "R") for letter in text] == plan
    assert schedule.sites == calibration.sites


def golden_calibration():
    """Two layers, all near; but nothing is like step 0, nor step 4 like those before 1."""
    calibration = layers_measured(0, 8, blocks=2, ends=("ff",))
    change = calibration.change
    change[~np.isnan(change)] = 0.1
    change[[1, 2, 3], :, [0, 1, 2]] = 0.4
    change[4] = [[0.4, 0.4, 0.0, 0.4], [0.4, 0.4, 0.2, 0.4]]
    return calibration


def test_smoothcache_golden():
    """From step 1 to 4 counts the mean of 0.0 and 0.2."""
    calibration = golden_calibration()
    for lookahead, expected in ((3, "CSRRRSRC"), (2, "CSRRSRRC"), (1, "CSRCSRCC")):
        schedule = smoothcache(calibration, 0.1, lookahead=lookahead)
        assert texts_of(schedule.resolve(calibration.sites)) == [expected] * 2


def test_smoothcache_says_why():
    calibration = golden_calibration()
    table = smoothcache(calibration, 0.1, lookahead=2).resolve(calibration.sites)
    assert [table.why(step, 1).partition(": ")[2] for step in range(8)] == [
        "COMPUTE, nothing is kept yet",
        "STORE, mean change of ff from step 0 to step 1 is 0.4, beyond 0.1",
        "REUSE of step 1, mean change of ff from step 1 to step 3 is 0.1, within 0.1",
        "REUSE of step 1, mean change of ff from step 1 to step 3 is 0.1, within 0.1",
        "STORE, SmoothCache skips at most 2 steps in a row",
        "REUSE of step 4, mean change of ff from step 4 to step 6 is 0.1, within 0.1",
        "REUSE of step 4, mean change of ff from step 4 to step 6 is 0.1, within 0.1",
        "COMPUTE, SmoothCache computes the last step",
    ]


def test_smoothcache_means_are_of_all_calibrated_layers_of_a_component():
    calibration = layers_measured(3, 20, blocks=4)
    schedule = smoothcache(calibration, 0.2)
    whole = schedule.resolve(calibration.sites)
    part = schedule.resolve(calibration.sites[2:5])
    assert np.array_equal(part.actions, whole.actions[:, 2:5])
    assert len(set(texts_of(whole)[::2])) == 1
    assert texts_of(whole)[0] != texts_of(whole)[1]


def test_smoothcache_of_blocks_takes_all_of_a_list_for_one_component():
    blocks = layers_measured(5, 15, blocks=1, ends=("0", "1", "2"))
    table = smoothcache(blocks, 0.25).resolve(blocks.sites)
    assert len(set(texts_of(table))) == 1
    reused = texts_of(table)[0].index("R")
    assert "mean change of blocks from step" in table.why(reused, 2)


def test_smoothcache_change_that_is_no_number_is_not_reused():
    calibration = layers_measured(1, 6, ages=1)
    calibration.change[3, 0] = np.nan
    pair = ("blocks.1.attn1", "blocks.1.ff")
    text, other = texts_of(smoothcache(calibration, 9.0, lookahead=1).resolve(pair))
    assert (text, other) == ("SRCSRC", "SRSRCC")


def test_smoothcache_refuses_another_model():
    schedule = smoothcache(layers_measured(0, 5), 0.1)
    schedule.refuse_other_model(MODEL)
    said = error_of(lambda: schedule.refuse_other_model(torch.nn.Linear(3, 2)))
    assert "the SmoothCache schedule was measured on another model" in said


def test_smoothcache_unknown_site():
    schedule = smoothcache(layers_measured(0, 5), 0.1)
    said = error_of(lambda: schedule.resolve(["blocks.9.attn1"]))
    assert "1 sites were not calibrated, such as blocks.9.attn1" in said


# ---- by file -------------------------------------------------------------------------------


def smoothcache_run(schedule, paths, num_steps):
    """1 and 0 per site and step, by the lookup of the helper and a cache per module."""
    found = []
    for path in paths:
        component, block = path.split(".")[-1], path.split(".")[-2]
        row, cache = [], None
        for step in range(num_steps):
            plan = schedule.get(f"{component}-{block}", schedule.get(component))
            skip = plan is not None and plan[step] == 0
            row.append(0 if skip and cache is not None else 1)
            cache = step if row[-1] else cache
        found.append(row)
    return found


@st.composite
def smoothcache_schedules(draw, blocks=3):
    num_steps = draw(st.integers(1, 12))
    keys = [*("attn1", "ff"), *(f"{c}-{b}" for c in ("attn1", "ff") for b in range(blocks))]
    chosen = draw(st.lists(st.sampled_from(keys), min_size=1, unique=True))
    rest = st.lists(st.integers(0, 1), min_size=num_steps - 1, max_size=num_steps - 1)
    return {key: [1, *draw(rest)] for key in chosen}, num_steps


@FEW
@given(smoothcache_schedules())
def test_read_smoothcache_equals_the_lookup_of_its_helper(made):
    content, num_steps = made
    schedule = read_smoothcache(content)
    assert schedule.num_steps == num_steps
    paths = sites_of(3)
    assert bits_of(schedule.resolve(paths)) == smoothcache_run(content, paths, num_steps)
    assert schedule == read_smoothcache(content)
    assert hash(schedule) == hash(read_smoothcache(content))


GOLDEN = {"attn1": [1, 0, 0, 1, 0, 1], "ff": [1, 1, 0, 1, 1, 1], "ff-1": [1, 0, 0, 0, 0, 1]}


def test_read_smoothcache_golden_from_a_file(tmp_path):
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps(GOLDEN))
    schedule = read_smoothcache(path)
    assert schedule == read_smoothcache(str(path)) == read_smoothcache(GOLDEN)
    assert schedule.sites == ("*.attn1", "*.ff")
    table = schedule.resolve(sites_of(2))
    assert texts_of(table) == ["SRRSRC", "CSRCCC", "SRRSRC", "SRRRRC"]
    assert table.why(2, 3).endswith(
        "REUSE of step 0, the SmoothCache schedule has ff-1 at 0: reuse"
    )
    assert table.why(3, 0).endswith("STORE, the SmoothCache schedule has attn1 at 1: compute")


def test_smoothcache_is_good_for_its_own_number_of_steps():
    measured = smoothcache(golden_calibration(), 0.1, lookahead=2)
    for schedule in (measured, read_smoothcache(GOLDEN)):
        steps = schedule.num_steps
        assert schedule.for_run(steps) is schedule
        both = schedule & dqar_fx.Schedule.linear()
        for each in (schedule, both):
            said = error_of(lambda each=each: each.for_run(99))
            assert said.startswith(f"the SmoothCache schedule is good for {steps} steps, but")


def test_read_smoothcache_what_is_not_named_computes():
    table = read_smoothcache({"attn1": [1, 0, 0]}).resolve(sites_of(1))
    assert texts_of(table) == ["SRR", "CCC"]
    assert table.why(1, 1).endswith("COMPUTE, the SmoothCache schedule does not name ff")


def test_read_smoothcache_names_of_another_model():
    original = {"attn": [1, 0, 1], "mlp": [1, 1, 0], "attn-1": [1, 1, 1]}
    schedule = read_smoothcache(original, names={"attn": "attn1", "mlp": "ff"})
    renamed = {"attn1": [1, 0, 1], "ff": [1, 1, 0], "attn1-1": [1, 1, 1]}
    assert schedule == read_smoothcache(renamed)
    assert schedule.sites == ("*.attn1", "*.ff")


@torch.no_grad()
def test_read_smoothcache_runs_on_a_dit():
    case = make_dit(layers=2)
    denoiser = dqar_fx.transform(case.model, read_smoothcache(GOLDEN))
    for step in range(6):
        denoiser(**case.inputs(step))
    assert denoiser.table.sites == tuple(sites_of(2))
    assert texts_of(denoiser.table) == ["SRRSRC", "CSRCCC", "SRRSRC", "SRRRRC"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"attn1": [0, 1]}, "component 'attn1' of the SmoothCache schedule has 0 (reuse) at"),
        ({"attn1": [1, 2]}, "component 'attn1' of the SmoothCache schedule has 2 at step 1; "),
        ({"ff": [1, 0.0]}, "component 'ff' of the SmoothCache schedule has 0.0 at step 1; "),
        ({"ff": [1, None]}, "component 'ff' of the SmoothCache schedule has None at step 1"),
        ({"ff": []}, "component 'ff' of the SmoothCache schedule needs one 1 or 0 per step"),
        ({"ff": 1}, "component 'ff' of the SmoothCache schedule needs one 1 or 0 per step"),
        (
            {"attn1": [1, 0], "ff": [1, 0, 1]},
            "components of a SmoothCache schedule need one length, found "
            "{'attn1': 2, 'ff': 3}",
        ),
        ({}, "a SmoothCache schedule has a list per component, "),
    ],
)
def test_read_smoothcache_wrong_content_named(content, message):
    assert error_of(lambda: read_smoothcache(content)).startswith(message)


def test_read_smoothcache_wrong_names():
    said = error_of(lambda: read_smoothcache(GOLDEN, names={"attn": "attn1"}))
    assert said == (
        "names has 'attn', which is no component of the SmoothCache schedule; its components "
        "are attn1, ff"
    )
    said = error_of(lambda: read_smoothcache(GOLDEN, names={"attn1": "ff"}))
    assert "gives two components of the SmoothCache schedule one name" in said


@pytest.mark.parametrize(
    ("key", "sites"),
    [("attn", sites_of(2)), ("ff-2", sites_of(2)), ("ff", sites_of(2, ("attn1",)))],
)
def test_read_smoothcache_component_without_a_site(key, sites):
    schedule = read_smoothcache({key: [1, 0, 1]})
    said = error_of(lambda: schedule.resolve(sites))
    ends = "attn1, ff" if len(sites) == 4 else "attn1"
    assert said.startswith(
        f"component {key!r} of the SmoothCache schedule means none of {len(sites)} sites, "
        f"whose paths end in {ends}. Give the model's own names"
    )


def test_read_smoothcache_site_that_is_the_root():
    assert texts_of(read_smoothcache({"attn": [1, 0]}).resolve(["attn"])) == ["SR"]


@pytest.mark.parametrize("text", ["[1, 0]", '"attn1"', "{", "", "null"])
def test_read_smoothcache_damaged_file(tmp_path, text):
    path = tmp_path / "schedule.json"
    path.write_text(text)
    said = error_of(lambda: read_smoothcache(path))
    assert "SmoothCache schedule" in said
    assert '{"attn1": [1, 0, ...], ...}' in said


def test_read_smoothcache_missing_file(tmp_path):
    said = error_of(lambda: read_smoothcache(tmp_path / "none.json"))
    assert "FileNotFoundError" in said
