"""Random programs of calls against a plain model of the clock.

`tests.helpers.request_truth` says what is checked, and what no rule can know.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, given, settings

from tests.helpers.request_player import play
from tests.helpers.request_programs import SURE, programs

RUNS = int(os.environ.get("PROGRAMS_OF_CALLS", "150"))
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)
EACH = settings(
    phases=PHASES, max_examples=RUNS, deadline=None, suppress_health_check=list(HealthCheck)
)


@EACH
@given(programs(clocks=SURE, kinds=("alone",), most_streams=1))
def test_programs_one_stream_one_after_another(program):
    play(program)


@EACH
@given(programs(kinds=("alone",)))
def test_programs_streams_that_come_and_go(program):
    play(program)


@EACH
@given(programs())
def test_programs_with_sessions_in_turns_and_threads(program):
    play(program)
