"""Sessions that generators open and close in any order."""

from __future__ import annotations

import pytest

from dqar_fx import StepError
from dqar_fx.denoiser.request import RequestSession
from dqar_fx.steps.sessions import Sessions


def forget(number):
    """No memory is held."""


def request(sessions):
    with RequestSession(sessions, forget):
        yield


def begin_two(sessions):
    first, second = request(sessions), request(sessions)
    next(first)
    next(second)
    return first, second


def test_generators_that_end_in_the_order_in_which_they_began_leave_no_session_open():
    sessions = Sessions()
    for generator in begin_two(sessions):
        generator.close()
    assert sessions.current is sessions.default


def test_generators_that_end_in_the_other_order_leave_no_session_open():
    sessions = Sessions()
    for generator in reversed(begin_two(sessions)):
        generator.close()
    assert sessions.current is sessions.default


def test_session_of_a_generator_that_goes_on_stays_refused_to_others():
    sessions = Sessions()
    first, _second = begin_two(sessions)
    first.close()
    with pytest.raises(StepError, match=r"session\.turn"):
        sessions.current  # noqa: B018  # reading it asks who calls
