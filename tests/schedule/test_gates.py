"""Gates: each rule again in plain loops, on calibrations of random numbers."""

import dataclasses
import math

import numpy as np
import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler

from dqar_fx import (
    Schedule,
    ScheduleError,
    entropy_gate,
    policy_gate,
    signal_to_noise,
    snr_gate,
)
from tests.helpers.random_calibrations import (
    PATHS,
    SITES,
    STEPS,
    Levels,
    random_calibration,
    random_policy,
)
from tests.helpers.rules_in_loops import check, entropy_rule, policy_rule, snr_rule
from tests.helpers.table_texts import texts_of


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
            "reuse='sideways' is unknown; known are above, below",
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
