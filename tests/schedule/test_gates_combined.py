"""Gates and schedules combined: each rule again in plain loops."""

import pytest

from dqar_fx import (
    Schedule,
    ScheduleError,
    entropy_gate,
    policy_gate,
    signal_to_noise,
    snr_gate,
)
from tests.helpers.random_calibrations import (
    SITES,
    STEPS,
    Levels,
    random_calibration,
    random_policy,
)
from tests.helpers.rules_in_loops import (
    both,
    check,
    either,
    entropy_rule,
    interval_rule,
    linear_rule,
    policy_rule,
    snr_rule,
    young_rule,
)

CALIBRATION = random_calibration()


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
