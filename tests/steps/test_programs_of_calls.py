"""Random programs of calls against a plain model of the clock.

`tests.helpers.request_truth` says what is checked, and what no rule can know. A few programs,
always the same ones, are tried each time;
``PROGRAMS_OF_CALLS=3400 pytest tests/steps/test_programs_of_calls.py`` tries 10,200 new ones,
which takes a quarter of an hour on one core.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, given, settings

from tests.helpers.request_programs import SURE, programs
from tests.helpers.request_world import play

EACH = settings(
    max_examples=int(os.environ.get("PROGRAMS_OF_CALLS", "40")),
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    derandomize="PROGRAMS_OF_CALLS" not in os.environ,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@EACH
@given(programs(clocks=SURE, kinds=("alone",), most_streams=1))
def test_programs_of_one_stream_read_nothing_stale_and_lose_nothing(program):
    play(program)


@EACH
@given(programs(kinds=("alone",)))
def test_programs_of_streams_that_come_and_go_read_nothing_stale_and_lose_nothing(program):
    play(program)


@EACH
@given(programs())
def test_programs_in_turns_and_threads_read_nothing_stale_and_lose_nothing(program):
    play(program)
