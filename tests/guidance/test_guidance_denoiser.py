"""Guidance: tables of the unconditional stream, the denoiser around it, and wrong use."""

from __future__ import annotations

import copy
import pickle
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import dqar_fx
from dqar_fx import Action, Guidance, Schedule, ScheduleError
from dqar_fx.schedule.rules import IntervalRule
from tests.helpers.guidance_oracle import ORDERS, guided, make_case, masked
from tests.helpers.models import Attention, make_dit
from tests.helpers.slow_cases import slow_but

LAYERS = 2
FIRST = ORDERS[0]
SITES = ("blocks.0", "blocks.1")


@pytest.fixture(scope="module")
def case():
    return make_case(LAYERS)


# ---- tables --------------------------------------------------------------------------------


def letters_of(row):
    return "".join(Action(action).letter for action in row)


def resolved(output, schedule):
    """The table of the unconditional stream's sites, and the actions of the first."""
    guidance = Guidance(output=Schedule.from_actions(output))
    table = guidance.resolve(schedule, SITES, ())
    return table, letters_of(table.actions[:, 0])


def test_table_stores_nothing_at_a_step_that_is_not_called():
    table, actions = resolved("CRCRCR", Schedule.from_actions("CCRRCR"))
    assert actions == "SCRCCC"
    assert table.why(1, 0).endswith(
        "not called: the kept output of the whole denoiser is read"
    )
    assert table.why(2, 0).endswith("REUSE of step 0, written out: R")


def test_table_lets_what_is_kept_grow_older_over_steps_that_are_not_called():
    schedule = Schedule(8, IntervalRule(every=9, warmup=2), max_age=2)
    table, actions = resolved("CCRRCCCC", schedule)
    assert actions == "CCCCSRRC"
    assert "3 steps old, beyond max_age=2" in table.why(4, 0)
    assert table.max_age == 2


def test_table_written_strictly_stores_only_where_that_is_written():
    _, actions = resolved("CCRCCC", Schedule.from_actions("SCRRCR"))
    assert actions == "SCCRCR"
    with pytest.raises(ScheduleError, match=r"not called at steps 2 .*no STORE comes before"):
        resolved("CCRCCC", Schedule.from_actions("CCSRCR"))


def test_table_of_forecasts_reads_steps_that_are_called():
    table, written = resolved("CCRCC", Schedule.from_actions("CCCFF", orders=1))
    _, ruled = resolved("CCRCC", Schedule(5, IntervalRule(9, 3)).forecast(1))
    assert written == ruled == "SSCFF"
    assert table.history == 2


def test_table_without_whole_output_is_the_schedules_own():
    schedule = Schedule.linear(9, 2)
    guidance = Guidance(output=Schedule.compute_all(9))
    assert guidance.resolve(schedule, SITES, ()) == schedule.resolve(SITES)


@settings(max_examples=80, deadline=None)
@given(
    output=st.lists(st.booleans(), min_size=5, max_size=5),
    every=st.integers(1, 4),
    max_age=st.sampled_from([None, 1, 2]),
    order=st.integers(0, 2),
    around=st.sampled_from([(), ((1,), ())]),
)
def test_table_is_valid_whatever_is_not_called(output, every, max_age, order, around):
    schedule = Schedule.interval(6, every, max_age=max_age)
    schedule = schedule.forecast(order) if order else schedule
    guidance = Guidance(output=masked([False, *output]))
    table = guidance.resolve(schedule, SITES, around)
    assert not table.actions[1:][output].any()
    assert all(table.why(step, site) for step in range(6) for site in range(2))
    if max_age is None:  # else refreshes move
        assert (table.is_skipped <= schedule.resolve(SITES, around).is_skipped).all()


def test_table_of_spans_covers_what_they_contain():
    case = make_dit(batch=4, layers=3)
    guidance = Guidance(output=Schedule.from_actions("CCRC"), batched=FIRST)
    denoiser = dqar_fx.transform(
        case.model,
        Schedule.from_actions("CRRR"),
        sites=["attention", "span"],
        guidance=guidance,
    )
    for step in range(4):
        denoiser(**case.inputs(step))
    rows = [set(letters_of(row)) for row in denoiser.unconditional.table.actions]
    assert rows[1:] == [{".", "R"}, {"C"}, {".", "R"}]


# ---- the denoiser around it ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("uncond", "output", "more", "sites", "outputs"),
    [
        ("CCCC", "CRRR", {"batched": FIRST}, 1, 1),
        ("CRCC", "CRRC", {"batched": FIRST, "keep": "difference"}, 1, 1),
        ("CRCR", None, {"batched": FIRST}, 2, 0),
        ("CCCC", "CRRR", {}, 2, 2),
        ("CCCC", "CRRR", {"keep": "difference"}, 2, 4),  # conditional outputs are held
        ("CCCC", "CCCC", {"keep": "difference"}, 2, 0),
    ],
)
def test_denoiser_counts_the_bytes_of_both_streams(case, uncond, output, more, sites, outputs):
    denoiser = guided(case, "CRCR", uncond, output, **more)
    denoiser.prepare(**case.inputs(0))
    site, whole = 2 * 36 * 60 * 4, 2 * 8 * 12 * 12 * 4  # of two samples
    assert denoiser.cache_bytes == LAYERS * site * sites + whole * outputs


def test_denoiser_bytes_are_those_that_are_allocated(case):
    denoiser = guided(case, "CRCR", "CCRR", "CRRC", keep="difference", batched=FIRST)
    for step in range(4):
        denoiser(**case.inputs(step))
    other = denoiser._beside(denoiser.program)
    programs = (denoiser.program, denoiser.unconditional)
    slots = [stream.slots for p in programs for stream in p.streams.values()]
    slots += [kept.slots for kept in other.kept.values()]
    assert sum(each.nbytes for each in slots) == denoiser.cache_bytes


def test_denoiser_explains_guidance(case):
    denoiser = guided(case, "CRCR", "CCRC", "CRRC", keep="difference", batched=FIRST)
    denoiser.prepare(**case.inputs(0))
    assert str(denoiser.explain()).endswith(
        "guidance, conditional_first:\n"
        "  the unconditional stream's sites: a schedule of its own, reuse ratio 0.000\n"
        "  its whole output: SRRC, its difference kept"
    )
    assert denoiser.guidance_table.sites == ("denoiser (unconditional)",)
    assert "computed at each step" in str(guided_alone(case).explain())


def guided_alone(case):
    denoiser = guided(case, "CRCR", None, None)
    denoiser.prepare(**case.inputs(0))
    assert denoiser.guidance_table is None
    return denoiser


@pytest.mark.slow
def test_denoiser_passes_on_reset_and_compile(case):
    denoiser = guided(case, "CRCR", None, "CRRR", batched=FIRST)
    results = [denoiser(**case.inputs(step)).sample for step in range(4)]
    other = denoiser._beside(denoiser.program)
    denoiser.reset()
    assert not other.kept
    assert not other.program.streams
    denoiser.compile(backend="aot_eager")
    assert not denoiser._others
    for step in range(4):
        result = denoiser(**case.inputs(step)).sample
        torch.testing.assert_close(result, results[step], rtol=1e-4, atol=1e-4)


def test_denoiser_with_schedule_keeps_guidance_and_graphs(case):
    denoiser = guided(case, "CRCR", None, "CRRR", batched=FIRST)
    denoiser.prepare(**case.inputs(0))
    twin = denoiser.with_schedule(Schedule.from_actions("CCRC"))
    assert twin.guidance is denoiser.guidance
    assert twin.program.captured is denoiser.program.captured
    assert twin.unconditional.lowering is denoiser.program.lowering
    assert letters_of(twin.unconditional.table.actions[:, 0]) == "CCCC"
    deeper = Guidance(Schedule.from_actions("CCCR").forecast(2), batched=FIRST)
    other = denoiser.with_schedule(Schedule.from_actions("CCRC"), guidance=deeper)
    other(**case.inputs(0))
    assert other.unconditional.table.history == 3
    assert other.program.captured is not denoiser.program.captured


def test_denoiser_moved_captures_both_streams_anew(case):
    denoiser = guided(case, "CRCR", None, "CRRR", batched=FIRST)
    denoiser(**case.inputs(0))
    denoiser.to(torch.bfloat16)
    assert not denoiser._others
    for step in range(2):
        inputs = case.inputs(step)
        inputs["hidden_states"] = inputs["hidden_states"].bfloat16()
        assert denoiser(**inputs).sample.dtype == torch.bfloat16


COPIES = [copy.deepcopy, lambda denoiser: pickle.loads(pickle.dumps(denoiser))]


@pytest.mark.parametrize("duplicate", slow_but(copy.deepcopy, of=COPIES))
def test_denoiser_copied_after_a_call_is_on_its_own(case, duplicate):
    denoiser = guided(case, "CRCR", None, "CRRR", batched=FIRST)
    expected = [denoiser(**case.inputs(step)).sample for step in range(2)]
    other = duplicate(denoiser)
    results = [other(**case.inputs(step)).sample for step in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    assert other.unconditional is not denoiser.unconditional


def test_denoiser_with_deeper_forecasts_of_one_stream_captures_once(case, monkeypatch):
    module, captured = sys.modules["dqar_fx.builder.tiers"], []

    def capture(*inputs, original=module.capture, **options):
        captured.append(original(*inputs, **options))
        return captured[-1]

    monkeypatch.setattr(module, "capture", capture)
    guidance = Guidance(Schedule.from_actions("CCCRCR").forecast(2), batched=FIRST)
    schedule = Schedule.from_actions("CRCRCR")
    denoiser = dqar_fx.transform(case.model, schedule, guidance=guidance)
    for step in range(6):
        denoiser(**case.inputs(step))
    assert len(captured) == 1
    assert denoiser.unconditional.table.history == 3


def test_denoiser_lets_go_of_both_streams_of_a_signature(case, monkeypatch):
    monkeypatch.setattr(sys.modules["dqar_fx.program.programs"], "MAX_PROGRAMS", 2)
    denoiser = guided(case, "CRCR", None, "CRRR", batched=FIRST)
    inputs = case.inputs(0)
    for rows in (2, 4, 6):
        given = {name: v[:1].expand(rows, *v.shape[1:]) for name, v in inputs.items()}
        denoiser(**given)
    assert len(denoiser._programs) == 2
    assert set(denoiser._others) == set(denoiser._programs)


# ---- wrong use -----------------------------------------------------------------------------


def test_batched_odd_number_of_rows_runs_plainly(case):
    denoiser = guided(case, "CRCR", None, None, batched=FIRST)
    inputs = {name: value[:3] for name, value in case.inputs(0).items()}
    with torch.no_grad():
        assert torch.equal(denoiser(**inputs).sample, case.model(**inputs).sample)
    assert len(denoiser.runs[-1].calls) == 1


def test_batched_output_without_rows_is_refused():
    class Summing(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = Attention(16)

        def forward(self, x, timestep):
            return self.attention(x) * timestep.reshape(-1, 1, 1), x.sum()

    guidance = Guidance(batched=FIRST)
    denoiser = dqar_fx.transform(Summing().eval(), Schedule.compute_all(2), guidance=guidance)
    with pytest.raises(dqar_fx.DqarError, match=r"output 1 .* shape \[\] for 2 samples"):
        denoiser(torch.ones(4, 5, 16), torch.full((4,), 5.0))


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"keep": "both"}, dqar_fx.OptionError, "known are output, difference"),
        ({"batched": "cond_first"}, dqar_fx.OptionError, "known are conditional_first"),
        ({"stream": True}, dqar_fx.DqarError, "expected the name that cache_context"),
        ({"stream": -1}, dqar_fx.DqarError, "from 0 on"),
        ({"output": "CRR"}, ScheduleError, r"expected a dqar_fx\.Schedule"),
        ({"unconditional": 3}, ScheduleError, r"expected a dqar_fx\.Schedule"),
        ({"keep": "difference"}, ScheduleError, "give output="),
        (
            {"output": Schedule.from_actions(["CR", "CC"])},
            ScheduleError,
            "is one site, which this schedule does not fit: .* has 2 sites",
        ),
        ({"output": Schedule.from_actions("RC")}, ScheduleError, "no STORE comes before"),
    ],
)
def test_guidance_that_makes_no_sense_is_refused(given, error, match):
    with pytest.raises(error, match=match):
        Guidance(**given)


@pytest.mark.parametrize("name", ["unconditional", "output"])
def test_guidance_of_another_number_of_steps_is_refused(case, name):
    guidance = Guidance(**{name: Schedule.interval(5, 2)})
    with pytest.raises(ScheduleError, match=rf"{name} is a schedule of 5 steps.* has 4"):
        dqar_fx.transform(case.model, Schedule.interval(4, 2), guidance=guidance)
    denoiser = dqar_fx.transform(case.model, Schedule.interval(5, 2), guidance=guidance)
    with pytest.raises(ScheduleError, match="same num_steps"):
        denoiser.with_schedule(Schedule.interval(4, 2))


def test_guidance_without_a_number_of_steps_is_fixed_with_the_run(case):
    own, output = Schedule.interval(every=2), Schedule.interval(every=3).forecast(1)
    guidance = Guidance(own, output, keep="difference", batched=FIRST)
    guidance.check(Schedule.linear(), case.model)
    with pytest.raises(ScheduleError, match="no number of steps"):
        guidance.output_table()
    with pytest.raises(ScheduleError, match=r"of no number of steps.* has 7 steps"):
        guidance.check(Schedule.linear(7), case.model)
    for num_rows in (7, 12):
        fixed = guidance.for_run(num_rows)
        expected = Guidance(
            own.for_run(num_rows), output.for_run(num_rows), "difference", FIRST
        )
        assert fixed == expected
        fixed.check(Schedule.linear(num_rows), case.model)
        assert fixed.output_table() == output.for_run(num_rows).resolve(
            fixed.output_table().sites
        )
    assert guidance.for_run(7).for_run(7) == guidance.for_run(7)
    with pytest.raises(ScheduleError, match="for 7 steps, but the run has 8"):
        guidance.for_run(7).for_run(8)


@settings(max_examples=30, deadline=None)
@given(every=st.integers(1, 5), warmup=st.integers(1, 4), rows=st.integers(2, 20))
def test_guidance_for_run_gives_the_tables_of_fixed_numbers(every, warmup, rows):
    output, sites = Schedule.interval(every=3, warmup=2), Schedule.linear(warmup=warmup)
    own = Schedule.interval(every=every)
    found = Guidance(own, output).for_run(rows).resolve(sites.for_run(rows), SITES, ())
    fixed = Guidance(Schedule.interval(rows, every), Schedule.interval(rows, 3, warmup=2))
    assert found == fixed.resolve(Schedule.linear(rows, warmup), SITES, ())


def test_guidance_gate_that_waits_for_noise_is_fixed_with_the_run():
    gate = dqar_fx.snr_gate(max_change=1.0)
    guidance = Guidance(output=gate | Schedule.interval(4, 9, warmup=3))
    fixed = guidance.for_run(4, noise=[0.1, 0.2, 3.0, 4.0])
    assert letters_of(fixed.output_table().actions[:, 0]) == "SRSR"


def test_guidance_that_is_none_is_refused(case):
    with pytest.raises(ScheduleError, match=r"expected a dqar_fx\.Guidance"):
        dqar_fx.transform(case.model, Schedule.interval(4, 2), guidance="uncond")


def test_guidance_for_other_sites_is_refused(case):
    own = Schedule(4, IntervalRule(2, 1), sites=("feed_forward",))
    guidance = Guidance(unconditional=own)
    with pytest.raises(ScheduleError, match=r"for sites=\('feed_forward',\)"):
        dqar_fx.transform(case.model, Schedule.interval(4, 2), guidance=guidance)


def test_guidance_for_another_number_of_sites_is_refused(case):
    guidance = Guidance(Schedule.from_actions(["CR"] * 3))
    denoiser = dqar_fx.transform(case.model, Schedule.interval(2, 2), guidance=guidance)
    with pytest.raises(ScheduleError, match="has 3 sites but the model has 2"):
        denoiser.prepare(**case.inputs(0))
