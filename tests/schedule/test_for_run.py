"""Schedules without a number of steps: the same tables, once a run says how many."""

import re

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import BranchTable, Schedule, ScheduleError, entropy_gate, policy_gate, snr_gate
from dqar_fx.prior_art import fora, magcache, taylorseer
from dqar_fx.schedule.rules import AnyModelRule
from dqar_fx.schedule.run import RunShape, calls_as_set, name_rows
from tests.helpers.random_calibrations import PATHS, random_calibration, random_policy
from tests.helpers.random_schedules import AGES, SITES, STEPS, paths
from tests.helpers.table_texts import texts_of

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array_:DeprecationWarning"  # diffusers turns tensors into arrays
)
FEW = settings(max_examples=100, deadline=None)
RATIOS = st.floats(1e-6, 1e6) | st.sampled_from([0.0, np.inf])


@st.composite
def makers(draw, depth=2):
    """Makes a schedule for a number of steps, or for None; the same rule each time."""
    kinds = ["linear", "interval", "compute_all", "fora", "taylorseer", "magcache"]
    kind = draw(st.sampled_from([*kinds, "&", "|", "forecast"] if depth else kinds))
    warmup, every, age = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(AGES)
    if kind in "&|":
        a, b = draw(makers(depth - 1)), draw(makers(depth - 1))
        plain = lambda make, n: Schedule(n, make(n).rule, make(n).max_age)  # noqa: E731
        if kind == "&":
            return lambda n: plain(a, n) & plain(b, n)
        return lambda n: plain(a, n) | plain(b, n)
    if kind == "forecast":
        order, method = draw(st.integers(1, 3)), draw(st.sampled_from(["taylor", "chebyshev"]))
        inner = draw(makers(0))
        return lambda n: inner(n).forecast(order, method)
    late = draw(st.none() | st.integers(warmup, warmup + 30))
    return {
        "linear": lambda n: Schedule.linear(n, warmup, full_from=late, max_age=age),
        "interval": lambda n: Schedule.interval(n, every, warmup=warmup, max_age=age),
        "compute_all": Schedule.compute_all,
        "fora": lambda n: fora(n, every),
        "taylorseer": lambda n: taylorseer(n, every, min(every, 3)),
        "magcache": lambda n: magcache([1.0, 0.99, 1.02, 0.97], num_steps=n, retention=0.1),
    }[kind]


@FEW
@given(makers(), STEPS, SITES)
def test_for_run_gives_the_table_of_the_fixed_number(make, num_steps, num_sites):
    rule, fixed = make(None), make(num_steps)
    assert rule.num_steps is None
    assert rule.waits_for_run
    found = rule.for_run(num_steps)
    assert found.num_steps == num_steps
    assert not found.waits_for_run
    table, expected = found.resolve(paths(num_sites)), fixed.resolve(paths(num_sites))
    assert table == expected
    for step in range(num_steps):
        assert table.why(step, num_sites - 1) == expected.why(step, num_sites - 1)


@FEW
@given(makers(), st.lists(STEPS, min_size=2, max_size=3), SITES)
def test_for_run_again_gives_every_other_number(make, lengths, num_sites):
    rule = make(None)
    for num_steps in lengths:
        table = rule.for_run(num_steps).resolve(paths(num_sites))
        assert table == make(num_steps).resolve(paths(num_sites))
    assert rule == rule


@FEW
@given(makers(), STEPS, SITES)
def test_max_history_bounds_every_table(make, num_steps, num_sites):
    rule = make(None)
    history = rule.for_run(num_steps).resolve(paths(num_sites)).history
    assert history <= rule.for_run(num_steps).max_history <= rule.max_history
    assert history <= make(num_steps).max_history


@pytest.mark.parametrize(
    ("schedule", "history"),
    [
        (Schedule.linear(), 1),
        (Schedule.interval(every=3).forecast(2), 3),
        (Schedule.interval(every=3).forecast(1, "least_squares"), 3),
        (Schedule.from_actions("CCRF", orders=[[0], [0], [3], [1]]), 4),
        (Schedule.from_actions("CCRR", orders=2), 1),
        (Schedule.from_actions("CFCF", orders=2, method="least_squares"), 4),
        (taylorseer(order=2), 3),
        (taylorseer(order=2) | Schedule.linear(), 1),
    ],
)
def test_max_history_is_that_of_the_order_and_method(schedule, history):
    assert schedule.max_history == history


@FEW
@given(makers(), STEPS)
def test_for_run_of_the_same_number_is_the_schedule_itself(make, num_steps):
    fixed = make(num_steps).for_run(num_steps)
    assert fixed.for_run(num_steps) is fixed
    assert make(None).for_run(num_steps).for_run(num_steps) == fixed


def test_for_run_of_another_number_names_both():
    message = re.escape("the schedule is for 20 steps, but the run has 30")
    for schedule in (
        Schedule.interval(20, 3),
        Schedule.linear(20) & Schedule.interval(every=2),
        Schedule.from_actions("CR" * 10),
        fora(20),
        Schedule.linear().for_run(20),
    ):
        with pytest.raises(ScheduleError, match=message):
            schedule.for_run(30)


def test_resolve_without_a_number_says_what_to_do():
    with pytest.raises(ScheduleError) as caught:
        Schedule.interval(every=3).resolve(["a"])
    assert "schedule.for_run(20).resolve(sites)" in str(caught.value)


def test_interval_without_its_distance_says_so():
    with pytest.raises(ScheduleError, match=re.escape("Schedule.interval(every=3)")):
        Schedule.interval(9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rows": 0}, "num_rows must be at least 1, found 0"),
        ({"num_rows": 2.0}, "num_rows must be an integer, found 2.0"),
        ({"num_rows": None}, "num_rows must be an integer, found None"),
        ({"num_rows": 2, "calls": (0, 1, 0)}, "calls of a run need one value per row, 2"),
        ({"num_rows": 2, "calls": (0, -1)}, "calls must be integers from 0 on"),
        ({"num_rows": 2, "calls": (0, 0.5)}, "calls must be integers from 0 on"),
        ({"num_rows": 2, "noise": [1.0]}, "noise of a run need one value per row, 2"),
        ({"num_rows": 2, "noise": [1.0, -1.0]}, "noise needs one signal-to-noise ratio"),
        ({"num_rows": 2, "noise": [1.0, np.nan]}, "noise needs one signal-to-noise ratio"),
        ({"num_rows": 2, "noise": [[1.0, 2.0]]}, "noise needs one signal-to-noise ratio"),
        ({"num_rows": 2, "noise": "ab"}, "noise needs signal-to-noise ratios"),
    ],
)
def test_for_run_argument_that_is_none_named(arguments, message):
    with pytest.raises(ScheduleError) as caught:
        Schedule.linear().for_run(**arguments)
    assert str(caught.value).startswith(message)


# ---- combinations ------------------------------------------------------------------------


def test_combination_takes_the_number_of_the_part_that_has_one():
    for both in (Schedule.linear() & Schedule.interval(12, 3),
                 Schedule.interval(12, 3) & Schedule.linear()):  # fmt: skip
        assert both.num_steps == 12
        expected = Schedule.linear(12) & Schedule.interval(12, 3)
        assert (
            both.resolve(paths(3)).actions.tolist()
            == expected.resolve(paths(3)).actions.tolist()
        )
    assert (Schedule.linear() | Schedule.interval(every=2)).num_steps is None


def test_combination_of_what_may_be_resampled_may_be_resampled():
    written = Schedule.from_actions("CRRCRR", resample=True)
    both = written | Schedule.interval(every=2)
    assert both.num_steps == 6
    assert both.for_run(9).resolve("a").num_steps == 9
    with pytest.raises(ScheduleError, match="for 6 steps, but the run has 9"):
        (written | Schedule.interval(6, 2)).for_run(9)
    with pytest.raises(ScheduleError, match="for 6 steps, but the run has 9"):
        (written & Schedule.from_actions("CRRCRR")).for_run(9)


# ---- measured ----------------------------------------------------------------------------


def test_measured_gates_name_the_length_that_they_are_good_for():
    calibration, policy = random_calibration(1), random_policy(1)
    steps = calibration.num_steps
    for schedule in (entropy_gate(calibration, 0.5), policy_gate(policy, 0.1)):
        assert schedule.for_run(steps) is schedule
        for each in (schedule, schedule & Schedule.linear(), Schedule(None, schedule.rule)):
            with pytest.raises(ScheduleError, match=rf"good for {steps} steps, but .* 7"):
                each.for_run(7)
        expected = (schedule & Schedule.linear(steps)).resolve(PATHS)
        assert (schedule & Schedule.linear()).resolve(PATHS) == expected


@FEW
@given(st.lists(RATIOS, min_size=1, max_size=20), st.floats(0.01, 5))
def test_snr_gate_without_a_number_takes_the_noise_of_the_run(noise, change):
    class Levels:
        def __init__(self):
            self.alphas_cumprod = torch.tensor(
                [1.0 if np.isinf(r) else r / (1 + r) for r in noise], dtype=torch.float64
            )
            self.timesteps = torch.arange(len(noise))

        def set_timesteps(self, num_steps):
            assert num_steps == len(noise)

    fixed = snr_gate(Levels(), len(noise), max_change=change)
    gate = snr_gate(max_change=change)
    assert gate.num_steps is None
    found = gate.for_run(len(noise), noise=fixed.rule.snr)
    assert found.rule == fixed.rule
    assert found.resolve("a") == fixed.resolve("a")
    assert found.resolve("a").noise == fixed.rule.snr


def test_snr_gate_without_noise_says_what_to_do():
    gate = snr_gate(min_snr=0.1)
    mixed = gate | Schedule.interval(6, 2)
    assert mixed.num_steps == 6
    assert mixed.waits_for_run
    for fail in (
        lambda: gate.for_run(6),
        lambda: mixed.for_run(6),
        lambda: mixed.resolve("a"),
    ):
        with pytest.raises(ScheduleError, match="noise levels of the run"):
            fail()
    ready = mixed.for_run(6, noise=[0.0, 0.01, 0.1, 1.0, 10.0, 100.0])
    assert texts_of(ready.resolve("a")) == ["SRRRRR"]
    assert not ready.waits_for_run


def test_snr_gate_arguments_of_the_scheduler_need_a_number():
    with pytest.raises(ScheduleError, match="mu: arguments of the scheduler"):
        snr_gate(DDIMScheduler(), min_snr=0.1, mu=1.0)


# ---- calls -------------------------------------------------------------------------------


class Calls(AnyModelRule):
    """Remembers the calls that it was asked at."""

    def __init__(self):
        self.asked = []

    def may_reuse(self, moment):
        self.asked.append((moment.step, moment.call))
        return np.ones(len(moment.sites), bool)

    def why(self, moment, site):
        return f"call {moment.call}"


def test_moment_knows_the_call_of_its_row():
    rule = Calls()
    table = Schedule(None, rule).for_run(4, calls=(0, 1, 0, 1)).resolve("a")
    assert rule.asked == [(1, 1), (2, 0), (3, 1)]
    assert table.why(3, 0).endswith("call 1")
    assert Schedule(None, rule).for_run(4).resolve("a").why(3, 0).endswith("call 0")
    assert RunShape(2).call_of(1) == 0


def test_second_calls_reuse_what_first_calls_kept():
    calls = (0, 1, 0, 1, 0, 1, 0)
    schedule = Schedule.second_calls().for_run(7, calls=calls)
    table = schedule.resolve("a")
    assert texts_of(table) == ["SRSRSRC"]
    assert "call 1, from 0 on, of a step of the solver" in table.why(1, 0)
    assert texts_of(Schedule.second_calls().for_run(7).resolve("a")) == ["CCCCCCC"]
    late = Schedule.second_calls(warmup=3).for_run(7, calls=calls).resolve("a")
    assert texts_of(late) == ["CCSRSRC"]
    assert "the first 3 steps are warm-up" in late.why(1, 0)


def test_interval_counts_rows_and_takes_second_calls_beside():
    calls = tuple(row % 2 for row in range(13))
    every = Schedule.interval(every=3)
    assert texts_of(every.for_run(13, calls=calls).resolve("a")) == ["SRRSRRSRRSRRC"]
    both = (every | Schedule.second_calls()).for_run(13, calls=calls)
    assert texts_of(both.resolve("a")) == ["SRRRRRSRRRRRC"]


@pytest.mark.parametrize(
    "make", [HeunDiscreteScheduler, KDPM2DiscreteScheduler, FlowMatchHeunDiscreteScheduler]
)
def test_calls_as_set_are_those_of_second_order_schedulers(make):
    scheduler = make()
    scheduler.set_timesteps(4)
    found, latent = calls_as_set(scheduler), torch.zeros(1)
    seen = []
    for timestep in scheduler.timesteps:
        seen.append(int(not scheduler.state_in_first_order))
        latent = scheduler.step(torch.zeros(1), timestep, latent).prev_sample
    assert found == tuple(seen) == (0, 1, 0, 1, 0, 1, 0)


@pytest.mark.parametrize(
    ("skips", "expected"),
    [(False, (*(0, 1, 2, 3) * 3, 0, 0)), (True, (0, 1, 0, 0, 0, 0))],
    ids=["Runge-Kutta", "skipped"],
)
def test_calls_as_set_of_pndm_are_those_of_its_first_steps(skips, expected):
    scheduler = PNDMScheduler(skip_prk_steps=skips)
    scheduler.set_timesteps(5)
    assert calls_as_set(scheduler) == expected
    assert RunShape.of(len(expected), expected, None).num_solver_steps == 5


@pytest.mark.parametrize(
    ("run", "named"),
    [
        (RunShape(5), "5 steps"),
        (RunShape(5, (0, 1, 0, 1, 0)), "5 evaluations (3 steps of the solver)"),
    ],
)
def test_rows_are_steps_or_evaluations(run, named):
    assert name_rows(run.num_rows, run.num_solver_steps) == named


def test_table_tells_evaluations_from_steps_also_once_it_was_saved(tmp_path):
    table = Schedule.interval(every=3).for_run(5, calls=(0, 1, 0, 1, 0)).resolve("ab")
    table.save(tmp_path / "table.json")
    for each in (table, BranchTable.load(tmp_path / "table.json")):
        assert each.num_solver_steps == 3
        assert str(each).startswith("5 evaluations (3 steps of the solver) x 2 sites")
    plain = Schedule.interval(5, 3).resolve("ab")
    assert plain == table
    assert str(plain).startswith("5 steps x 2 sites")


def test_calls_as_set_of_first_order_are_zero():
    for make in (DDIMScheduler, DPMSolverMultistepScheduler):
        scheduler = make()
        scheduler.set_timesteps(5)
        assert calls_as_set(scheduler) == (0,) * 5
        assert Schedule.linear().for_run(5, calls=calls_as_set(scheduler)) == Schedule.linear(
            5
        )
    with pytest.raises(ScheduleError, match="int has no timesteps"):
        calls_as_set(3)


def test_for_run_keeps_what_an_earlier_one_was_told():
    calls, noise = (0, 1, 0), (1.0, 2.0, 2.0)
    schedule = Schedule.second_calls().for_run(3, calls=calls)
    both = schedule.for_run(3, noise=noise)
    assert both.run == RunShape(3, calls, noise)
    assert both.for_run(3) is both
    assert BranchTable(both.resolve("a").actions, ("a",)) == both.resolve("a")
