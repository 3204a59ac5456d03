"""Schedules: what holds of all of them, what their arguments and rules must be."""

import numpy as np
import pytest
from hypothesis import given

from dqar_fx import Action, BranchTable, Schedule, ScheduleError
from dqar_fx.schedule.rules import AnyModelRule, Moment
from tests.helpers.random_schedules import FEW, SITES, paths, schedules
from tests.helpers.table_texts import texts_of

# ---- what holds of every schedule --------------------------------------------------------


@FEW
@given(schedules(), SITES)
def test_schedule_resolves_to_a_verified_table_of_its_length(schedule, num_sites):
    table = schedule.resolve(paths(num_sites))
    assert table.actions.shape == (schedule.num_steps, num_sites)
    assert table.sites == tuple(paths(num_sites))
    assert BranchTable(table.actions, table.sites, schedule.max_age) == table


@FEW
@given(schedules(), SITES)
def test_schedule_first_step_never_reuses(schedule, num_sites):
    assert Action.REUSE not in schedule.resolve(paths(num_sites)).row(0)


@FEW
@given(schedules(), SITES)
def test_schedule_no_store_is_dead(schedule, num_sites):
    for column in texts_of(schedule.resolve(paths(num_sites))):
        assert "S" not in column.replace("SR", "")


@FEW
@given(schedules(), SITES)
def test_schedule_max_age_respected(schedule, num_sites):
    table = schedule.resolve(paths(num_sites))
    age = np.arange(table.num_steps)[:, None] - table.sources
    ages = age[table.actions == Action.REUSE]
    assert (ages >= 1).all()
    assert schedule.max_age is None or (ages <= schedule.max_age).all()


@FEW
@given(schedules(), SITES)
def test_schedule_resolved_twice_gives_equal_tables(schedule, num_sites):
    first, second = (schedule.resolve(paths(num_sites)) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


@FEW
@given(schedules(), SITES)
def test_schedule_written_out_again_gives_the_same_table(schedule, num_sites):
    table = schedule.resolve(paths(num_sites))
    actions = table.actions
    for written in (texts_of(table), actions, actions == Action.REUSE, actions.tolist()):
        again = Schedule.from_actions(written, max_age=schedule.max_age)
        assert again.num_steps == schedule.num_steps
        assert again.resolve(paths(num_sites)) == table


# ---- arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule.linear(0), "num_steps must be at least 1, found 0"),
        (lambda: Schedule.linear(-3), "num_steps must be at least 1, found -3"),
        (lambda: Schedule.linear(5.0), "num_steps must be an integer, found 5.0"),
        (lambda: Schedule.linear("5"), "num_steps must be an integer, found '5'"),
        (lambda: Schedule.linear(True), "num_steps must be an integer, found True"),
        (lambda: Schedule.linear(9, 0), "warmup must be at least 1, found 0"),
        (lambda: Schedule.linear(9, 2.5), "warmup must be an integer, found 2.5"),
        (lambda: Schedule.linear(9, full_from=4), "full_from must be at least 5, found 4"),
        (lambda: Schedule.linear(9, full_from=6.0), "full_from must be an integer, found 6.0"),
        (lambda: Schedule.linear(9, max_age=0), "max_age must be at least 1, found 0"),
        (lambda: Schedule.linear(9, max_age="2"), "max_age must be an integer, found '2'"),
        (lambda: Schedule.interval(0, 2), "num_steps must be at least 1, found 0"),
        (lambda: Schedule.interval(9, 0), "every must be at least 1, found 0"),
        (lambda: Schedule.interval(9, "2"), "every must be an integer, found '2'"),
        (lambda: Schedule.interval(9, 2, warmup=0), "warmup must be at least 1, found 0"),
        (lambda: Schedule.interval(9, 2, max_age=-1), "max_age must be at least 1, found -1"),
        (lambda: Schedule.compute_all(0), "num_steps must be at least 1, found 0"),
        (lambda: Schedule.compute_all(1.0), "num_steps must be an integer, found 1.0"),
        (
            lambda: Schedule.from_actions("CR", max_age=0),
            "max_age must be at least 1, found 0",
        ),
    ],
)
def test_schedule_argument_out_of_range_named_with_what_was_found(make, message):
    with pytest.raises(ScheduleError) as caught:
        make()
    assert str(caught.value) == message


def test_schedule_numpy_integers_accepted():
    by_numpy = Schedule.linear(np.int64(9), np.int32(2), full_from=np.int8(4))
    assert by_numpy.resolve(["a"]) == Schedule.linear(9, 2, full_from=4).resolve(["a"])


def test_schedule_other_length_than_its_text_rejected():
    with pytest.raises(ScheduleError):
        Schedule(5, Schedule.from_actions("CSR").rule).resolve(["a"])


# ---- rules -------------------------------------------------------------------------------


class Wrong(AnyModelRule):
    """A rule that answers for another number of sites."""

    def may_reuse(self, moment):
        return np.ones(len(moment.sites) + 1, bool)


def test_schedule_rule_of_a_wrong_shape_named_with_its_step():
    schedule = Schedule(4, Wrong())
    with pytest.raises(ScheduleError, match=r"of shape \[3\] at step 1.* each of 2 sites"):
        schedule.resolve(paths(2))


class Listening(AnyModelRule):
    """A rule that reuses twice after each computation, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def may_reuse(self, moment):
        self.asked.append(moment)
        return moment.age <= np.arange(1, len(moment.sites) + 1)


def test_schedule_rule_is_asked_once_per_step_with_the_age_of_each_site():
    rule = Listening()
    table = Schedule(6, rule).resolve(["a", "b"])
    assert texts_of(table) == ["SRSRSR", "SRRSRR"]
    assert [moment.step for moment in rule.asked] == [1, 2, 3, 4, 5]
    assert {(moment.num_steps, moment.sites) for moment in rule.asked} == {(6, ("a", "b"))}
    assert [moment.age.tolist() for moment in rule.asked] == table.ages[1:].tolist()
    assert all(isinstance(moment, Moment) for moment in rule.asked)
