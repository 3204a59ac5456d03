"""Rules: each asked directly, at moments of any step and age."""

import dataclasses
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dqar_fx import ScheduleError
from dqar_fx.schedule.rules import (
    AgeLimit,
    AllOf,
    AnyModelRule,
    AnyOf,
    IntervalRule,
    LinearRule,
    Moment,
)
from dqar_fx.schedule.written_out import WrittenActions

FEW = settings(max_examples=50, deadline=None)
STEP, SITES = st.integers(1, 60), st.integers(1, 12)


def moment(step=3, ages=(1, 2, 3), num_steps=60):
    """A moment of as many sites as there are ages."""
    sites = tuple(f"blocks.{i}.attn" for i in range(len(ages)))
    return Moment(step, num_steps, sites, np.array(ages))


@dataclasses.dataclass(frozen=True)
class Says(AnyModelRule):
    """Allows what it is told to, and says its name."""

    name: str
    votes: tuple

    def may_reuse(self, moment):
        assert len(moment.sites) == len(self.votes)
        return np.array(self.votes)

    def why(self, moment, site):
        return f"{self.name} at {moment.step}, {site}"


class Refuses(Says):
    """Was made for no model at all."""

    def refuse_other_model(self, model):
        raise ScheduleError(f"{self.name} was not made for {type(model).__name__}")


YES, NO = (True, True, True), (False, False, False)
A, B, C = Says("a", (True, True, False)), Says("b", (True, False, False)), Says("c", NO)


# ---- linear ------------------------------------------------------------------------------


@FEW
@given(st.integers(1, 20), st.integers(0, 40), SITES)
def test_linear_starts_lie_on_the_line_rounded_half_up(warmup, length, num_sites):
    rule = LinearRule(warmup, warmup + length)
    starts = rule.starts(num_sites, 60).tolist()
    deepest = max(num_sites - 1, 1)
    assert starts == [
        floor(warmup + Fraction(site * length, deepest) + Fraction(1, 2))
        for site in range(num_sites)
    ]
    assert starts == sorted(starts)
    assert starts[0] == warmup
    assert num_sites == 1 or starts[-1] == warmup + length


@FEW
@given(st.integers(1, 20), st.integers(0, 40), SITES, STEP)
def test_linear_allows_from_each_sites_start_on(warmup, length, num_sites, step):
    rule = LinearRule(warmup, warmup + length)
    now = moment(step, range(1, num_sites + 1))
    starts = rule.starts(num_sites, 60)
    found = rule.may_reuse(now)
    assert (found.dtype, found.shape) == (np.bool_, (num_sites,))
    assert found.tolist() == [step >= start for start in starts]
    for site, start in enumerate(starts):
        said = rule.why(now, site)
        if step >= start:
            assert said == f"the linear schedule reuses this site from step {start} on"
        elif step < warmup:
            assert said == f"the first {warmup} steps are warm-up"
        else:
            assert said == f"the linear schedule computes this site before step {start}"


def test_linear_does_not_look_at_the_age():
    rule = LinearRule(2, 2)
    assert rule.may_reuse(moment(2, (1, 50))).all()


# ---- interval ----------------------------------------------------------------------------


@FEW
@given(st.integers(1, 9), st.integers(1, 9), STEP)
def test_interval_allows_between_the_steps_that_compute(every, warmup, step):
    computed = {*range(warmup), *range(warmup - 1, 100, every)}
    rule, now = IntervalRule(every, warmup), moment(step)
    found = rule.may_reuse(now)
    assert (found.dtype, found.shape) == (np.bool_, (3,))
    assert set(found.tolist()) == {step not in computed}


@FEW
@given(st.integers(1, 9), st.integers(1, 9), STEP)
def test_interval_why_counts_from_the_step_that_computed(every, warmup, step):
    said = IntervalRule(every, warmup).why(moment(step), 1)
    if step < warmup:
        assert said == f"the first {warmup} steps are warm-up"
    elif (step - warmup + 1) % every == 0:
        assert said == f"each {every}-th step after the warm-up computes"
    else:
        last = max(s for s in range(warmup - 1, step, every))
        assert said == f"step {step - last} of {every - 1} between computed ones"


# ---- written out, age limit --------------------------------------------------------------

WRITTEN = WrittenActions((("C", "S"), ("R", "C"), ("S", "R"), ("C", "R")), strict=True)


def test_written_allows_where_r_is_written():
    for step, votes in enumerate([(False, False), (True, False), (False, True)]):
        assert WRITTEN.may_reuse(moment(step, (1, 1))).tolist() == list(votes)
    assert WRITTEN.why(moment(2, (1, 1)), 0) == "written out: S"
    assert WRITTEN.why(moment(3, (1, 1)), 1) == "written out: R"


def test_written_one_column_is_for_all_sites():
    rule = WrittenActions((("C",), ("R",)), strict=False)
    assert rule.spread(5).shape == (2, 5)
    assert rule.may_reuse(moment(1)).all()


@pytest.mark.parametrize("num_sites", [1, 3])
def test_written_other_number_of_sites_named(num_sites):
    with pytest.raises(ScheduleError) as caught:
        WRITTEN.spread(num_sites)
    assert str(caught.value) == (
        f"the written-out schedule has 2 sites but the model has {num_sites}; write one "
        "column per site, or a single one for all"
    )


def test_age_limit_allows_up_to_its_age():
    rule, now = AgeLimit(2), moment(9, (1, 2, 3))
    assert rule.may_reuse(now).tolist() == [True, True, False]
    assert [rule.why(now, site) for site in range(3)] == [
        "what is kept is 1 steps old, within max_age=2",
        "what is kept is 2 steps old, within max_age=2",
        "what is kept is 3 steps old, beyond max_age=2",
    ]


# ---- combinations ------------------------------------------------------------------------


@FEW
@given(st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=5))
def test_combination_votes_site_by_site(votes):
    rules = tuple(Says(str(i), each) for i, each in enumerate(votes))
    by_site = list(zip(*votes, strict=True))
    assert AllOf(rules).may_reuse(moment()).tolist() == [all(site) for site in by_site]
    assert AnyOf(rules).may_reuse(moment()).tolist() == [any(site) for site in by_site]


def test_all_of_gives_who_refuses_or_all_who_allow():
    rule = AllOf((A, B, C))
    assert [rule.why(moment(), site) for site in range(3)] == [
        "c at 3, 0",
        "b at 3, 1; c at 3, 1",
        "a at 3, 2; b at 3, 2; c at 3, 2",
    ]
    assert AllOf((A, B)).why(moment(), 0) == "a at 3, 0; b at 3, 0"


def test_any_of_gives_who_allows_or_all_who_refuse():
    rule = AnyOf((A, B, C))
    assert [rule.why(moment(), site) for site in range(3)] == [
        "a at 3, 0; b at 3, 0",
        "a at 3, 1",
        "a at 3, 2; b at 3, 2; c at 3, 2",
    ]


def test_combination_inside_another_gives_the_reasons_of_those_that_decided():
    inner = AnyOf((B, C))
    outer = AllOf((A, inner))
    assert [outer.why(moment(), site) for site in range(3)] == [
        "a at 3, 0; b at 3, 0",
        "b at 3, 1; c at 3, 1",
        "a at 3, 2; b at 3, 2; c at 3, 2",
    ]
    assert AnyOf((AllOf((A, B)), C)).why(moment(), 1) == "b at 3, 1; c at 3, 1"


@pytest.mark.parametrize("how", [AllOf, AnyOf])
def test_combination_refuses_a_model_that_any_of_its_rules_refuses(how):
    model = nn.Linear(1, 1)
    how((A, LinearRule(1, 2), IntervalRule(2, 1), AgeLimit(1), WRITTEN)).refuse_other_model(
        model
    )
    for rules in (
        (A, Refuses("r", YES)),
        (Refuses("r", NO), A),
        (A, how((Refuses("r", NO),))),
    ):
        with pytest.raises(ScheduleError, match="r was not made for Linear"):
            how(rules).refuse_other_model(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinearRule(1, 3),
        lambda: IntervalRule(2, 1),
        lambda: AgeLimit(4),
        lambda: WrittenActions((("C",), ("R",)), strict=False),
        lambda: AllOf((LinearRule(1, 3), AgeLimit(2))),
        lambda: AnyOf((IntervalRule(2, 1), AllOf((AgeLimit(2),)))),
    ],
)
def test_rule_equal_ones_are_equal_and_hashable(make):
    assert make() == make()
    assert len({make(), make()}) == 1


def test_linear_half_way_starts_round_up():
    for num_sites in (3, 5, 9):
        starts = LinearRule(1, num_sites // 2 + 1).starts(num_sites, 60)
        exact = [1 + Fraction(s * (num_sites // 2), num_sites - 1) for s in range(num_sites)]
        halves = [(s, e) for s, e in zip(starts, exact, strict=True) if e.denominator == 2]
        assert halves
        assert all(start == ceil(value) for start, value in halves)
