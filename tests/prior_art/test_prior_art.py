"""Schedules of other systems: what holds of all, and what is said of wrong arguments."""

import numpy as np
import pytest

from dqar_fx import BranchTable, Schedule
from dqar_fx.prior_art import fora, magcache, smoothcache, step_mask, taylorseer
from dqar_fx.schedule.rules import Moment
from tests.helpers.prior_art_decisions import error_of, layers_measured, text_of

RATIO = [1.0, 0.99, 0.97, 1.02, 0.95, 0.9]
MADE = [
    lambda: fora(6),
    lambda: taylorseer(6, 2, 2),
    lambda: step_mask("110100"),
    lambda: magcache(RATIO, num_steps=6),
]


@pytest.mark.parametrize("make", MADE)
def test_prior_art_equal_ones_are_equal_and_hashable(make):
    assert make() == make()
    assert len({make(), make()}) == 1


@pytest.mark.parametrize(
    "make",
    [fora, lambda n: fora(n, 2), taylorseer, lambda n: taylorseer(n, 3, 2),
     lambda n: magcache(RATIO, num_steps=n)],
)  # fmt: skip
@pytest.mark.parametrize("num_steps", [1, 2, 6, 13])
def test_prior_art_without_a_number_of_steps_takes_the_runs(make, num_steps):
    rule, fixed = make(None), make(num_steps)
    assert rule.num_steps is None
    assert rule == make(None)
    assert rule.for_run(num_steps) == fixed
    assert rule.for_run(num_steps).resolve("ab") == fixed.resolve("ab")
    assert rule.max_history >= fixed.max_history == fixed.resolve("ab").history
    mixed = (rule | Schedule.interval(num_steps, 2)).resolve("ab")
    assert mixed == (fixed | Schedule.interval(num_steps, 2)).resolve("ab")
    moment = Moment(num_steps - 1, num_steps, ("a", "b"), np.ones(2, int))
    assert rule.rule.may_reuse(moment).tolist() == fixed.rule.may_reuse(moment).tolist()
    assert rule.rule.why(moment, 1) == fixed.rule.why(moment, 1)


@pytest.mark.parametrize("make", MADE)
def test_prior_art_table_is_verified_saved_and_loaded(make, tmp_path):
    table = make().resolve(["a", "b", "c"])
    table.save(tmp_path / "table.json")
    assert BranchTable.load(tmp_path / "table.json") == table


@pytest.mark.parametrize("make", MADE)
def test_prior_art_combines_with_another_schedule(make):
    schedule, none = make(), Schedule.compute_all(6)
    reused = text_of(schedule).translate(str.maketrans("FS", "RC"))
    assert text_of(schedule & none) == "CCCCCC"
    assert text_of(schedule | none).replace("S", "C") == reused


@pytest.mark.parametrize("make", [MADE[0], MADE[2], MADE[3]])
def test_prior_art_reuse_may_be_forecast(make):
    again = text_of(make().forecast(1))
    assert again.translate(str.maketrans("FS", "RC")) == text_of(make()).replace("S", "C")
    assert "F" in again


@pytest.mark.parametrize("make", MADE)
def test_prior_art_rule_answers_for_any_number_of_sites(make):
    schedule = make()
    sites = tuple("abcde")
    moment = Moment(4, 6, sites, np.ones(5, int))
    assert schedule.rule.may_reuse(moment).shape == (5,)
    assert len({schedule.rule.why(moment, site) for site in range(5)}) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fora(0), "num_steps must be at least 1, found 0"),
        (lambda: fora(9, 0), "every must be at least 1, found 0"),
        (lambda: fora(9, 2.0), "every must be an integer, found 2.0"),
        (lambda: taylorseer("9"), "num_steps must be an integer, found '9'"),
        (lambda: taylorseer(9, first=0), "first must be at least 1, found 0"),
        (lambda: taylorseer(9, order=-1), "order must be at least 0, found -1"),
        (lambda: taylorseer(9, order=4), "order must be at most 3, found 4"),
        (lambda: taylorseer(9, first=3, start=2), "start must be at least 3, found 2"),
        (lambda: step_mask(), "expected a mask, or both compute_bins and cache_bins"),
        (
            lambda: step_mask("10", compute_bins=[1], cache_bins=[1]),
            "expected a mask, or both compute_bins and cache_bins",
        ),
        (
            lambda: step_mask(compute_bins=[1]),
            "expected a mask, or both compute_bins and cache_bins",
        ),
        (
            lambda: step_mask(compute_bins=[1, -1], cache_bins=[1]),
            "each of compute_bins must be at least 0, found -1",
        ),
        (
            lambda: step_mask(compute_bins=[2], cache_bins=[1], num_steps=4),
            "the step mask has 3 steps but num_steps is 4",
        ),
        (
            lambda: step_mask("110", num_steps=2),
            "the step mask has 3 steps but num_steps is 2",
        ),
        (lambda: step_mask("10", num_steps=0), "num_steps must be at least 1, found 0"),
        (
            lambda: step_mask("slow"),
            "the step mask has 's' at step 0; expected 1 (compute) or 0 (reuse)",
        ),
        (
            lambda: step_mask([1, 2]),
            "the step mask has 2 at step 1; expected 1 (compute) or 0 (reuse)",
        ),
        (
            lambda: step_mask([1, 0.0]),
            "the step mask has 0.0 at step 1; expected 1 (compute) or 0 (reuse)",
        ),
        (
            lambda: step_mask("011"),
            "the step mask has 0 (reuse) at step 0, where nothing is kept yet; let it start "
            "with 1",
        ),
        (lambda: step_mask([]), "the step mask needs one 1 or 0 per step, found []"),
        (lambda: step_mask(7), "the step mask needs one 1 or 0 per step, found 7"),
        (lambda: magcache([]), "ratios must be numbers, one per step, found []"),
        (lambda: magcache([[1.0]]), "ratios must be numbers, one per step, found [[1.0]]"),
        (
            lambda: magcache([1.0, -0.5]),
            "ratios must be positive numbers, found -0.5 at step 1",
        ),
        (
            lambda: magcache([1.0, float("nan")]),
            "ratios must be positive numbers, found nan at step 1",
        ),
        (lambda: magcache(RATIO, num_steps=0), "num_steps must be at least 1, found 0"),
        (lambda: magcache(RATIO, threshold=-1), "threshold must be at least 0, found -1"),
        (
            lambda: magcache(RATIO, threshold=float("nan")),
            "threshold must be at least 0, found nan",
        ),
        (lambda: magcache(RATIO, threshold="x"), "threshold must be a number, found 'x'"),
        (lambda: magcache(RATIO, max_skip=-1), "max_skip must be at least 0, found -1"),
        (
            lambda: magcache(RATIO, retention=1.5),
            "retention is a share of the steps, at most 1, found 1.5",
        ),
        (
            lambda: smoothcache(layers_measured(0, 5), None),
            "threshold must be a number, found None",
        ),
        (
            lambda: smoothcache(layers_measured(0, 5), 0.1, lookahead=0),
            "lookahead must be at least 1, found 0",
        ),
        (
            lambda: smoothcache(layers_measured(0, 5), 0.1, lookahead=5),
            "lookahead=5, but the calibration knows ages up to 4; calibrate with max_age=5",
        ),
    ],
)
def test_prior_art_wrong_argument_named_with_what_was_found(make, message):
    assert error_of(make) == message
