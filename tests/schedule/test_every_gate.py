"""What holds of every gate, whatever it was measured on."""

import math
import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import (
    Action,
    BranchTable,
    Schedule,
    entropy_gate,
    policy_gate,
    signal_to_noise,
    snr_gate,
)
from dqar_fx.schedule.rules import Moment
from tests.helpers.random_calibrations import (
    MAX_AGE,
    PATHS,
    SITES,
    STEPS,
    Levels,
    random_calibration,
    random_policy,
)

FEW = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 10**6)
AGES = st.none() | st.integers(1, 5)


@st.composite
def gates(draw, steps=9, sites=3):
    """Any schedule: gates on random calibrations, combined with each other or with rules."""
    kind = draw(st.sampled_from(["snr", "entropy", "policy", "linear", "interval", "&", "|"]))
    seed, max_age = draw(SEEDS), draw(AGES)
    if kind == "&":
        return draw(gates(steps, sites)) & draw(gates(steps, sites))
    if kind == "|":
        return draw(gates(steps, sites)) | draw(gates(steps, sites))
    if kind == "linear":
        return Schedule.linear(steps, draw(st.integers(1, 4)), max_age=max_age)
    if kind == "interval":
        return Schedule.interval(steps, draw(st.integers(1, 4)), max_age=max_age)
    calibration = random_calibration(seed, steps, sites, 4)
    if kind == "snr":
        low, change = draw(st.floats(1e-3, 10)), draw(st.none() | st.floats(0, 5))
        levels = Levels(calibration.snr)
        return snr_gate(levels, steps, min_snr=low, max_change=change, max_age=max_age)
    if kind == "entropy":
        share, side = draw(st.floats(0, 1)), draw(st.sampled_from(["above", "below"]))
        return entropy_gate(calibration, quantile=share, reuse=side, max_age=max_age)
    limit = draw(st.floats(1e-3, 0.2))
    return policy_gate(random_policy(seed, steps, sites, 4), limit, max_age=max_age)


def moments(table):
    """What a rule is asked at each step of a table but the first."""
    for step in range(1, table.num_steps):
        yield step, Moment(step, table.num_steps, table.sites, table.ages[step])


@FEW
@given(gates())
def test_gate_table_is_verified_and_starts_computing(schedule):
    table = schedule.resolve(PATHS[:3])
    assert BranchTable(table.actions, table.sites, table.max_age) == table
    assert Action.REUSE not in table.row(0)


@FEW
@given(gates())
def test_gate_table_reuses_where_its_rule_allows_and_age_permits(schedule):
    table = schedule.resolve(PATHS[:3])
    limit = table.max_age or math.inf
    for step, moment in moments(table):
        allowed = schedule.rule.may_reuse(moment) & (moment.age <= limit)
        assert (allowed == (table.actions[step] == Action.REUSE)).all()


@FEW
@given(gates(), gates())
def test_gate_conjunction_reuses_where_both_allow_it_and_disjunction_where_one_does(a, b):
    for combined, join in ((a & b, np.logical_and), (a | b, np.logical_or)):
        table = combined.resolve(PATHS[:3])
        for step, moment in moments(table):
            votes = [
                each.rule.may_reuse(moment) & (moment.age <= (each.max_age or math.inf))
                for each in (a, b)
            ]
            assert (join(*votes) == (table.actions[step] == Action.REUSE)).all()


@FEW
@given(gates())
def test_gate_resolved_twice_gives_equal_tables(schedule):
    first, second = (schedule.resolve(PATHS[:3]) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


@FEW
@given(SEEDS, st.floats(0, 1), AGES)
def test_gate_of_equal_calibrations_gives_equal_tables(seed, share, max_age):
    tables = []
    for _ in range(2):
        calibration, policy = random_calibration(seed), random_policy(seed)
        gate = entropy_gate(calibration, quantile=share, max_age=max_age)
        tables.append((gate | policy_gate(policy, 0.05)).resolve(PATHS))
    assert tables[0] == tables[1]


@FEW
@given(gates())
def test_gate_why_of_every_cell_says_the_action(schedule):
    table = schedule.resolve(PATHS[:3])
    for step in range(table.num_steps):
        for site, path in enumerate(table.sites):
            said = table.why(step, site)
            assert said == table.why(step, path)
            action = Action(table.actions[step, site])
            assert re.match(
                rf"step {step}, site {site} \({re.escape(path)}\): {action.name}\b", said
            )
            assert "as given" not in said
            assert (said.count(f"REUSE of step {table.sources[step, site]},")) == (
                action == Action.REUSE
            )


@FEW
@given(SEEDS, st.floats(1e-3, 10), st.floats(0.1, 1e4), st.floats(0, 4))
def test_snr_gate_why_names_the_number_that_decided(seed, low, high, most):
    levels = Levels(random_calibration(seed).snr)
    snr = signal_to_noise(levels, STEPS)
    schedule = snr_gate(levels, STEPS, min_snr=low, max_snr=high, max_change=most)
    table = schedule.resolve(["a"])
    for step in range(1, STEPS):
        change = abs(math.log(snr[step]) - math.log(snr[step - table.ages[step, 0]]))
        if snr[step] < low:
            reason = f"SNR {snr[step]:.3g} is below {low:.3g}"
        elif snr[step] > high:
            reason = f"SNR {snr[step]:.3g} is above {high:.3g}"
        elif change > most:
            reason = f"log SNR has changed by {change:.3g}, more than {most:.3g}"
        else:
            reason = f"SNR {snr[step]:.3g} is in the window, log SNR changed by {change:.3g}"
        assert table.why(step, 0).endswith(f", {reason}")
        assert ("is in the window" in reason) == (table.actions[step, 0] == Action.REUSE)


@FEW
@given(SEEDS, st.floats(0, 1), st.sampled_from(["above", "below"]))
def test_entropy_gate_why_names_the_number_that_decided(seed, limit, reuse):
    calibration = random_calibration(seed)
    table = entropy_gate(calibration, limit, reuse=reuse).resolve(PATHS)
    for step in range(1, STEPS):
        for site in range(SITES):
            entropy = calibration.entropy[step, site]
            side = "at least" if entropy >= limit else "below"
            reason = f", attention entropy {entropy:.3f} is {side} {limit:.3f}"
            assert table.why(step, site).endswith(reason)
            allowed = (side == "at least") == (reuse == "above")
            assert allowed == (table.actions[step, site] == Action.REUSE)


@FEW
@given(SEEDS, st.floats(1e-3, 0.1))
def test_policy_gate_why_names_the_number_that_decided(seed, limit):
    policy = random_policy(seed)
    table = policy_gate(policy, limit).resolve(PATHS)
    for step in range(1, STEPS):
        for site in range(SITES):
            age = table.ages[step, site]
            if age > MAX_AGE:
                reason = f"age {age} is beyond the 5 steps that were calibrated"
            else:
                error = policy.predicted[step, site, age - 1]
                side = "within" if error <= limit else "beyond"
                reason = f"predicted error {error:.2e} at age {age} is {side} {limit:.2e}"
            assert table.why(step, site).endswith(f", {reason}")
            assert ("within" in reason) == (table.actions[step, site] == Action.REUSE)


@FEW
@given(gates(), st.integers(1, 4))
def test_gate_age_limit_is_kept_and_named(schedule, max_age):
    limited = Schedule(schedule.num_steps, schedule.rule, max_age)
    table = limited.resolve(PATHS[:3])
    for step, moment in moments(table):
        assert (moment.age[table.actions[step] == Action.REUSE] <= max_age).all()
        allowed = schedule.rule.may_reuse(moment)
        for site in np.flatnonzero(allowed & (table.actions[step] != Action.REUSE)):
            assert table.why(step, int(site)).endswith(
                f"what is kept is {moment.age[site]} steps old, beyond max_age={max_age}"
            )
