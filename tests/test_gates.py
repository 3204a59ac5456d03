"""Gates: each rule again in plain loops, on calibrations of random numbers."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx import (
    Action,
    BranchTable,
    Calibration,
    Policy,
    Schedule,
    ScheduleError,
    entropy_gate,
    policy_gate,
    signal_to_noise,
    snr_gate,
)
from dqar_fx.calibration import Cells
from dqar_fx.fingerprint import Fingerprint
from dqar_fx.rules import Moment

FEW = settings(max_examples=25, deadline=None)
SEEDS = st.integers(0, 10**6)
AGES = st.none() | st.integers(1, 5)
STEPS, SITES, MAX_AGE = 12, 4, 5
PATHS = tuple(f"blocks.{i}.attn" for i in range(SITES))
MODEL = Fingerprint.of(torch.nn.Linear(2, 2))


# ---- calibrations and policies of random numbers -----------------------------------------


def random_calibration(seed=0, steps=STEPS, sites=SITES, ages=MAX_AGE, cells=0):
    """What a run might have measured; a step knows no older step than the first."""
    rng = np.random.default_rng(seed)
    change = rng.uniform(0.01, 1, (steps, sites, ages))
    for step in range(steps):
        change[step, :, step:] = np.nan
    known = np.argwhere(~np.isnan(change))
    step, site, age = rng.permutation(known)[:cells].T + np.array([[0], [0], [1]])
    unknown = np.full(len(step), np.nan)
    return Calibration(
        sites=tuple(f"blocks.{i}.attn" for i in range(sites)),
        snr=np.sort(rng.lognormal(0, 3, steps)),
        entropy=rng.uniform(0, 1, (steps, sites)),
        change=change,
        cells=Cells(step, site, age, rng.uniform(1e-4, 1e-1, len(step)), unknown, unknown),
        fingerprint=MODEL,
        samples=1,
    )


def random_policy(seed=0, steps=STEPS, sites=SITES, ages=MAX_AGE):
    """What a policy might predict."""
    calibration = random_calibration(seed, steps, sites, ages)
    predicted = np.where(np.isnan(calibration.change), np.inf, calibration.change / 10)
    return Policy(calibration.sites, predicted, {}, {}, MODEL)


class Levels:
    """A scheduler with these signal-to-noise ratios."""

    def __init__(self, snr):
        self.alphas_cumprod = torch.from_numpy(snr / (1 + snr)).flip(0)
        self.timesteps = torch.arange(len(snr)).flip(0)

    def set_timesteps(self, num_steps):
        assert num_steps == len(self.timesteps)


# ---- the second implementation -----------------------------------------------------------


def simulated(num_steps, num_sites, allows, max_age=None):
    """A text per site by the words of the rule ``allows(step, site, age)``."""
    texts = []
    for site in range(num_sites):
        letters, kept = ["C"], 0
        for step in range(1, num_steps):
            age = step - kept
            if allows(step, site, age) and (max_age is None or age <= max_age):
                letters.append("R")
                letters[kept] = "S"
            else:
                letters.append("C")
                kept = step
        texts.append("".join(letters))
    return texts


def texts_of(table):
    return ["".join(Action(a).letter for a in column) for column in table.actions.T]


def check(schedule, allows, max_age=None, paths=PATHS):
    """A schedule gives the table of the second implementation; that table."""
    table = schedule.resolve(paths)
    expected = simulated(schedule.num_steps, len(paths), allows, max_age)
    assert texts_of(table) == expected
    return table


def snr_rule(snr, low=0.0, high=math.inf, most=math.inf):
    def allows(step, site, age):
        del site
        if not low <= snr[step] <= high:
            return False
        moved = 0 if most == math.inf else math.log(snr[step] / snr[step - age])
        return abs(moved) <= most

    return allows


def entropy_rule(entropy, limits, reuse="above"):
    def allows(step, site, age):
        del age
        broad = entropy[step][site] >= limits[site]
        return broad if reuse == "above" else not broad

    return allows


def policy_rule(predicted, limit):
    def allows(step, site, age):
        return age <= len(predicted[step][site]) and predicted[step][site][age - 1] <= limit

    return allows


def linear_rule(warmup, full_from, num_sites):
    def allows(step, site, age):
        del age
        exact = warmup + site * (full_from - warmup) / max(num_sites - 1, 1)
        return step >= math.floor(exact + 0.5)

    return allows


def interval_rule(every, warmup):
    def allows(step, site, age):
        del site, age
        return step >= warmup and (step - warmup + 1) % every != 0

    return allows


def young_rule(rule, max_age):
    def allows(step, site, age):
        return rule(step, site, age) and (max_age is None or age <= max_age)

    return allows


def both(one, other):
    return lambda *cell: one(*cell) and other(*cell)


def either(one, other):
    return lambda *cell: one(*cell) or other(*cell)


# ---- signal-to-noise ratio ---------------------------------------------------------------


@pytest.mark.parametrize("max_age", [None, 2])
@pytest.mark.parametrize(
    "limits",
    [
        {"min_snr": 0.1},
        {"max_snr": 30.0},
        {"min_snr": 0.01, "max_snr": 5.0},
        {"max_change": 1.0},
        {"min_snr": 0.02, "max_snr": 100.0, "max_change": 2.5},
        {"max_change": 0.0},
    ],
    ids=lambda limits: "-".join(limits),
)
def test_snr_gate_equals_its_rule_in_plain_loops(limits, max_age):
    scheduler = DDIMScheduler()
    schedule = snr_gate(scheduler, 25, **limits, max_age=max_age)
    names = {"min_snr": "low", "max_snr": "high", "max_change": "most"}
    rule = snr_rule(
        signal_to_noise(scheduler, 25), **{names[name]: x for name, x in limits.items()}
    )
    table = check(schedule, rule, max_age)
    assert table.max_age == max_age
    assert 0 < table.reuse_ratio < 1 or limits == {"max_change": 0.0}


def test_snr_gate_change_counts_from_what_was_kept_last():
    snr = np.exp(np.arange(7.0))
    (column,) = texts_of(snr_gate(Levels(snr), 7, max_change=2.5).resolve(["a"]))
    assert column == "SRRSRRC"


def test_snr_gate_limits_belong_to_the_window():
    snr = np.array([0.25, 0.5, 1.0, 2.0])
    gate = snr_gate(Levels(snr), 4, min_snr=0.5, max_snr=1.0)
    rule = dataclasses.replace(gate.rule, snr=tuple(snr.tolist()))
    assert texts_of(Schedule(4, rule).resolve(["a"])) == ["SRRC"]


def test_snr_gate_infinite_ratio_has_not_changed_from_an_infinite_one():
    snr = (1.0, math.inf, math.inf)
    rule = snr_gate(DDIMScheduler(), 3, max_change=1.0).rule
    schedule = Schedule(3, dataclasses.replace(rule, snr=snr))
    table = schedule.resolve(["a"])
    assert texts_of(table) == ["CSR"]
    assert table.why(1, 0).endswith("log SNR has changed by inf, more than 1")
    assert table.why(2, 0).endswith("SNR inf is in the window, log SNR changed by 0")


def test_snr_gate_no_signal_at_all_has_not_changed_from_none():
    rule = snr_gate(DDIMScheduler(), 3, max_change=1.0).rule
    schedule = Schedule(3, dataclasses.replace(rule, snr=(0.0, 0.0, 1.0)))
    assert texts_of(schedule.resolve(["a"])) == ["SRC"]


@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
def test_snr_gate_of_two_calls_per_step_has_a_row_for_each():
    snr = signal_to_noise(HeunDiscreteScheduler(), 6)
    schedule = snr_gate(HeunDiscreteScheduler(), 6, max_change=1.5)
    assert schedule.num_steps == 11
    check(schedule, snr_rule(snr, most=1.5))


def test_snr_gate_passes_mu_on():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    snr = signal_to_noise(scheduler, 8, mu=0.9)
    check(snr_gate(scheduler, 8, mu=0.9, min_snr=0.2), snr_rule(snr, low=0.2))
    with pytest.raises(ScheduleError, match="mu"):
        snr_gate(scheduler, 8, min_snr=0.2)


def test_snr_gate_without_a_limit_says_how_to_find_one():
    with pytest.raises(ScheduleError) as caught:
        snr_gate(DDIMScheduler(), 8)
    assert str(caught.value) == (
        "an SNR gate needs a limit: min_snr, max_snr or max_change. The ratios of a scheduler "
        "are dqar_fx.signal_to_noise(scheduler, num_steps)"
    )


@pytest.mark.parametrize("limit", ["min_snr", "max_snr", "max_change"])
def test_snr_gate_limit_that_is_no_number_is_a_schedule_error(limit):
    with pytest.raises(ScheduleError, match=limit):
        snr_gate(DDIMScheduler(), 8, **{limit: math.nan})


@pytest.mark.parametrize("max_age", [0, -1, 2.5])
def test_snr_gate_max_age_out_of_range_is_a_schedule_error(max_age):
    with pytest.raises(ScheduleError, match="max_age"):
        snr_gate(DDIMScheduler(), 8, min_snr=0.1, max_age=max_age)


# ---- entropy -----------------------------------------------------------------------------

CALIBRATION = random_calibration()


@pytest.mark.parametrize("max_age", [None, 1, 3])
@pytest.mark.parametrize("reuse", ["above", "below"])
@pytest.mark.parametrize(
    ("threshold", "limits"),
    [
        (0.5, [0.5] * SITES),
        (0, [0.0] * SITES),
        ([0.2, 0.4, 0.6, 0.8], [0.2, 0.4, 0.6, 0.8]),
        (np.array([0.2, 0.4, 0.6, 0.8]), [0.2, 0.4, 0.6, 0.8]),
        (dict(zip(PATHS[::-1], [0.8, 0.6, 0.4, 0.2], strict=True)), [0.2, 0.4, 0.6, 0.8]),
        (CALIBRATION.entropy[5], list(CALIBRATION.entropy[5])),
    ],
    ids=["one", "zero", "list", "array", "by_path", "a_measured_value"],
)
def test_entropy_gate_equals_its_rule_in_plain_loops(threshold, limits, reuse, max_age):
    schedule = entropy_gate(CALIBRATION, threshold, reuse=reuse, max_age=max_age)
    rule = entropy_rule(CALIBRATION.entropy.tolist(), limits, reuse)
    assert check(schedule, rule, max_age).max_age == max_age


def quantile_of(values, share):
    """The value below which a share of them lies, halfway ones by a straight line."""
    values = sorted(values)
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


@pytest.mark.parametrize("reuse", ["above", "below"])
@pytest.mark.parametrize("quantile", [0, 0.25, 0.5, 0.9, 1])
def test_entropy_gate_quantile_is_of_each_sites_own_entropies(quantile, reuse):
    limits = [quantile_of(column, quantile) for column in CALIBRATION.entropy.T.tolist()]
    schedule = entropy_gate(CALIBRATION, quantile=quantile, reuse=reuse)
    check(schedule, entropy_rule(CALIBRATION.entropy.tolist(), limits, reuse))


def test_entropy_gate_quantile_zero_reuses_all_but_the_first_step():
    table = entropy_gate(CALIBRATION, quantile=0).resolve(PATHS)
    assert texts_of(table) == ["S" + "R" * (STEPS - 1)] * SITES


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "an entropy gate needs a threshold or a quantile, and not both"),
        (
            {"threshold": 0.5, "quantile": 0.5},
            "an entropy gate needs a threshold or a quantile, and not both",
        ),
        (
            {"threshold": 0.5, "reuse": "sideways"},
            "reuse='sideways' is unknown; known are 'above' and 'below'",
        ),
        ({"quantile": 1.5}, "quantile must be in [0, 1], found 1.5"),
        ({"quantile": math.nan}, "quantile must be in [0, 1], found nan"),
        (
            {"threshold": [0.1, 0.2]},
            "expected one threshold, or 4, one per site; found [0.1, 0.2]",
        ),
        (
            {"threshold": "high"},
            "expected one threshold, or 4, one per site; found 'high'",
        ),
        (
            {"threshold": {PATHS[0]: 0.1, PATHS[1]: 0.1, PATHS[2]: 0.1, "x": 0.2}},
            "thresholds by path must name each site once; missing are ['blocks.3.attn'], "
            "unknown are ['x']",
        ),
        ({"threshold": 0.5, "max_age": 0}, "max_age must be at least 1, found 0"),
    ],
    ids=[
        "none",
        "both",
        "side",
        "quantile",
        "nan",
        "number_of_thresholds",
        "text",
        "paths",
        "age",
    ],
)
def test_entropy_gate_wrong_argument_says_what_was_found(given, message):
    with pytest.raises(ScheduleError) as caught:
        entropy_gate(CALIBRATION, **given)
    assert str(caught.value) == message


@pytest.mark.parametrize("threshold", [math.nan, [0.1, math.nan, 0.3, 0.4]], ids=str)
def test_entropy_gate_threshold_that_is_no_number_is_a_schedule_error(threshold):
    with pytest.raises(ScheduleError):
        entropy_gate(CALIBRATION, threshold)


# ---- policy ------------------------------------------------------------------------------


@pytest.mark.parametrize("max_age", [None, 2, 9])
@pytest.mark.parametrize("limit", [0.01, 0.03, 0.06, 0.2])
def test_policy_gate_equals_its_rule_in_plain_loops(limit, max_age):
    policy = random_policy(3)
    schedule = policy_gate(policy, limit, max_age=max_age)
    check(schedule, policy_rule(policy.predicted.tolist(), limit), max_age)


def test_policy_gate_knows_no_older_output_than_the_calibration():
    table = policy_gate(random_policy(), 1e9).resolve(PATHS)
    assert texts_of(table) == ["SRRRRRSRRRRR"] * SITES
    assert table.why(6, 0).endswith("age 6 is beyond the 5 steps that were calibrated")


def test_policy_gate_why_of_an_age_that_was_not_measured_there_does_not_blame_the_age():
    policy = random_policy(steps=5, sites=1, ages=3)
    policy.predicted[2] = np.inf
    table = policy_gate(policy, 1.0).resolve(policy.sites)
    assert texts_of(table) == ["SRSRR"]
    assert "beyond the 3 steps" not in table.why(2, 0)


@pytest.mark.parametrize("limit", [0, -0.1, math.nan])
def test_policy_gate_error_that_is_not_positive_is_a_schedule_error(limit):
    with pytest.raises(ScheduleError) as caught:
        policy_gate(random_policy(), limit)
    assert str(caught.value) == f"max_error must be positive, found {limit}"


# ---- sites -------------------------------------------------------------------------------


GATES = {
    "entropy": (entropy_gate(CALIBRATION, 0.5), entropy_rule(CALIBRATION.entropy, [0.5] * 4)),
    "policy": (
        policy_gate(random_policy(3), 0.04),
        policy_rule(random_policy(3).predicted, 0.04),
    ),
}


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("places", [(1, 2), (3,), (3, 0, 1), (0, 1, 2, 3)])
def test_gate_some_of_the_calibrated_sites_are_found_by_path(gate, places):
    schedule, rule = GATES[gate]
    table = check(
        schedule,
        lambda step, site, age: rule(step, places[site], age),
        paths=[PATHS[place] for place in places],
    )
    whole = schedule.resolve(PATHS)
    for column, place in enumerate(places):
        assert (table.actions[:, column] == whole.actions[:, place]).all()
        cells = range(STEPS)
        said = [table.why(step, column).split("): ")[1] for step in cells]
        assert said == [whole.why(step, place).split("): ")[1] for step in cells]


@pytest.mark.parametrize("gate", GATES)
def test_gate_sites_that_were_not_calibrated_are_named(gate):
    schedule, _ = GATES[gate]
    with pytest.raises(ScheduleError) as caught:
        schedule.resolve([PATHS[0], "blocks.7.attn", "blocks.8.attn"])
    assert str(caught.value) == (
        "2 sites were not calibrated, such as blocks.7.attn; calibrated are 4, blocks.0.attn "
        "to blocks.3.attn. Calibrate with the same sites=..."
    )


# ---- combinations ------------------------------------------------------------------------


def named_schedules(max_age=None):
    """A schedule of each kind with its rule in plain words."""
    snr = CALIBRATION.snr
    policy = random_policy(3)
    return {
        "linear": (
            Schedule.linear(STEPS, 2, full_from=7, max_age=max_age),
            linear_rule(2, 7, SITES),
        ),
        "interval": (
            Schedule.interval(STEPS, 3, warmup=2, max_age=max_age),
            interval_rule(3, 2),
        ),
        "snr": (
            snr_gate(Levels(snr), STEPS, min_snr=0.05, max_change=3.0, max_age=max_age),
            snr_rule(signal_to_noise(Levels(snr), STEPS), low=0.05, most=3.0),
        ),
        "entropy": (
            entropy_gate(CALIBRATION, 0.4, max_age=max_age),
            entropy_rule(CALIBRATION.entropy, [0.4] * SITES),
        ),
        "policy": (
            policy_gate(policy, 0.05, max_age=max_age),
            policy_rule(policy.predicted, 0.05),
        ),
    }


KINDS = list(named_schedules())
PAIRS = [(a, b) for i, a in enumerate(KINDS) for b in KINDS[i:]]


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_combination_equals_its_rules_in_plain_loops(left, right):
    (one, rule), (other, second) = named_schedules()[left], named_schedules()[right]
    for a, b in ((one, other), (other, one)):
        check(a & b, both(rule, second))
        check(a | b, either(rule, second))


@pytest.mark.parametrize("ages", [(2, None), (None, 2), (1, 3)])
@pytest.mark.parametrize(("left", "right"), [("linear", "entropy"), ("policy", "interval")])
def test_combination_max_age_binds_its_own_side_alone(left, right, ages):
    one, rule = named_schedules(ages[0])[left]
    other, second = named_schedules(ages[1])[right]
    rules = young_rule(rule, ages[0]), young_rule(second, ages[1])
    assert check(one & other, both(*rules)).max_age is None
    check(one | other, either(*rules))


def test_combination_of_three_equals_its_rules_in_plain_loops():
    given = named_schedules(3)
    (one, a), (two, b), (three, c) = given["snr"], given["entropy"], given["interval"]
    a, b, c = (young_rule(rule, 3) for rule in (a, b, c))
    check((one & two) | three, either(both(a, b), c))
    check(one & (two | three), both(a, either(b, c)))


def test_combination_of_other_lengths_names_both():
    gate = entropy_gate(CALIBRATION, 0.5)
    with pytest.raises(ScheduleError, match="of 12 and 5 steps cannot be combined"):
        gate & Schedule.linear(5)


# ---- what holds of every gate ------------------------------------------------------------


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
