"""Blocks and spans reused and forecast: against hooks on the untouched model; counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.utils import counters

import dqar_fx
from dqar_fx import Action, BranchTable, Schedule, ScheduleError, SiteError
from tests.helpers.hook_oracle import ResidualOracle
from tests.helpers.models import MAKERS, make_dit
from tests.helpers.slow_cases import slow_but

STEPS = 7
SDPA = torch.ops.aten.scaled_dot_product_attention.default


def compare(case, denoiser, *, atol=None, steps=STEPS):
    """Each step against the oracle: bit for bit, or within a relative bound."""
    denoiser.prepare(**case.inputs(0))
    oracle = ResidualOracle(case.model, denoiser.table)
    for step in range(steps):
        found = denoiser(**case.inputs(step)).sample
        expected = oracle(step, **case.inputs(step))
        if atol is None:
            assert torch.equal(found, expected), f"step {step}"
        else:
            worst = (found - expected).abs().max() / expected.abs().max()
            assert worst < atol, f"step {step}: {worst}"


# ---- values --------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", ["block", "span"])
@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_residuals_reused_equal_hooks_bit_for_bit(name, sites):
    case = MAKERS[name]()
    compare(case, dqar_fx.transform(case.model, Schedule.interval(STEPS, 3), sites=sites))


@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_residuals_forecast_equal_hooks(name):
    case = MAKERS[name]()
    schedule = Schedule.interval(STEPS, 3, warmup=2).forecast(1)
    compare(case, dqar_fx.transform(case.model, schedule, sites="block"), atol=1e-5)


@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_residuals_compute_all_equals_the_model_bit_for_bit(name):
    case = MAKERS[name]()
    denoiser = dqar_fx.transform(
        case.model, Schedule.compute_all(2), sites=["block", "span", "all"]
    )
    with torch.no_grad():
        expected = case.model(**case.inputs(0)).sample
    assert torch.equal(denoiser(**case.inputs(0)).sample, expected)


@pytest.fixture(scope="module")
def mixed():
    """A denoiser with sites of all kinds, three steps kept; rows are of tables given later."""
    case = make_dit()
    sites = ["block", "all", "transformer_blocks.1:4"]
    schedule = Schedule.interval(STEPS, 2).forecast(2)
    denoiser = dqar_fx.transform(case.model, schedule, sites=sites)
    denoiser.prepare(**case.inputs(0))
    return case, denoiser


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_residuals_random_tables_mixing_kinds_and_orders_equal_hooks(mixed, data):
    case, denoiser = mixed
    num_sites = len(denoiser.table.sites)
    letters = [
        "C" + data.draw(st.text("CRF", min_size=STEPS - 1, max_size=STEPS - 1))
        for _ in range(num_sites)
    ]
    orders = data.draw(st.lists(st.integers(1, 2), min_size=num_sites, max_size=num_sites))
    schedule = Schedule.from_actions(letters, orders=np.tile(orders, (STEPS, 1)))
    tried = denoiser.with_schedule(schedule)
    compare(case, tried, atol=1e-5)


def test_residuals_quantised_within_the_bound_of_the_format():
    case = make_dit()
    schedule = Schedule.interval(STEPS, 3)
    plain = dqar_fx.transform(case.model, schedule, sites="span")
    small = dqar_fx.transform(case.model, schedule, sites="span", cache="int8")
    for step in range(STEPS):
        inputs = case.inputs(step)
        expected, found = plain(**inputs).sample, small(**inputs).sample
        assert (found - expected).norm() / expected.norm() < 0.02
    assert small.cache_bytes < 0.4 * plain.cache_bytes


# ---- what is left of a step ----------------------------------------------------------------


def test_residuals_reused_block_costs_one_add():
    case = make_dit()
    denoiser = dqar_fx.transform(case.model, Schedule.interval(STEPS, 3), sites="block")
    denoiser(**case.inputs(0))
    before = set(denoiser.program.variants)
    denoiser(**case.inputs(1))
    regions, known = denoiser.program.plan.regions.values(), denoiser.program.lowering._known
    of_step = {v.structure for (region, *_), v in known.items() if region in regions}
    assert of_step - before
    for reused in of_step - before:  # by the layout of what comes in
        graph = denoiser.program.variants[reused].gm.graph
        nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
        assert [str(node.target) for node in nodes] == ["aten.add.Tensor"]
    whole = denoiser.row_graph(1).graph.find_nodes(op="call_function", target=SDPA)
    assert list(whole) == []


def test_residuals_reused_span_calls_no_block():
    case = make_dit()
    denoiser = dqar_fx.transform(case.model, Schedule.interval(STEPS, 3), sites="span")
    denoiser.prepare(**case.inputs(0))
    program = denoiser.program
    denoiser(**case.inputs(0))
    denoiser(**case.inputs(1))
    (stream,) = program.streams.values()
    lengths = sorted(len(calls) for calls in stream.rows.values())
    assert len(lengths) == 2
    assert lengths[1] - lengths[0] == 5
    assert denoiser.cache_bytes == 2 * 36 * 60 * 4


def test_residuals_outputs_are_no_slots():
    case = make_dit()
    denoiser = dqar_fx.transform(case.model, Schedule.interval(STEPS, 2), sites="span")
    first = denoiser(**case.inputs(0)).sample
    kept = first.clone()
    for step in range(1, STEPS):
        denoiser(**case.inputs(step))
    assert torch.equal(first, kept)


# ---- tables --------------------------------------------------------------------------------


def test_residuals_sites_inside_are_covered_where_the_block_reads():
    resolved = Schedule.interval(4, 2).resolve(["a", "a.attn"], around=[(), (0,)])
    letters = ["".join(Action(a).letter for a in column) for column in resolved.actions.T]
    assert letters == ["SRSR", "C.C."]
    assert resolved.reuse_ratio == 0.5
    assert resolved.why(1, "a.attn").endswith("COVERED, inside of a, which is read")


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (["SR", "SR"], "not covered (.), though a site around it is read"),
        (["CC", "C."], "covered (.), but no site around it is read"),
    ],
)
def test_residuals_table_with_a_wrong_cover_rejected(texts, reason):
    letters = {a.letter: int(a) for a in Action}
    actions = np.array([[letters[c] for c in text] for text in texts]).T
    with pytest.raises(ScheduleError) as raised:
        BranchTable(actions, ("a", "a.attn"), around=((), (0,)))
    assert reason in str(raised.value)


def test_residuals_table_saves_and_loads(tmp_path, mixed):
    _, denoiser = mixed
    table = denoiser.table
    table.save(tmp_path / "table.json")
    assert BranchTable.load(tmp_path / "table.json") == table
    assert any(table.around)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_residuals_random_nests_make_valid_tables(data):
    """Whatever the letters: covered exactly where a site around reads."""
    around = ((), (0,), (0, 1), ())
    texts = ["C" + data.draw(st.text("CR", min_size=7, max_size=7)) for _ in around]
    table = Schedule.from_actions(texts).resolve(["span", "block", "attn", "other"], around)
    for step in range(8):
        reads = {c for c in range(4) if table.is_read[step, c]}
        for column, outer in enumerate(around):
            is_covered = table.actions[step, column] == Action.COVERED
            assert is_covered == any(o in reads for o in outer)


def test_residuals_unknown_span_is_an_error_that_lists_the_sites():
    case = make_dit()
    denoiser = dqar_fx.transform(
        case.model, Schedule.interval(STEPS, 2), sites="transformer_blocks.2:9"
    )
    with pytest.raises(SiteError, match=r"'transformer_blocks\.2:9' selects no site"):
        denoiser.prepare(**case.inputs(0))


def test_schedule_brings_its_sites():
    case = make_dit()
    schedule = Schedule(STEPS, Schedule.interval(STEPS, 2).rule, sites="span")
    denoiser = dqar_fx.transform(case.model, schedule)
    denoiser.prepare(**case.inputs(0))
    assert denoiser.table.sites == ("transformer_blocks.0:5",)
    other = dqar_fx.transform(case.model, schedule, sites="block")
    other.prepare(**case.inputs(0))
    assert len(other.table.sites) == 5


def test_schedules_for_different_sites_do_not_combine():
    rule = Schedule.interval(STEPS, 2).rule
    with pytest.raises(ScheduleError, match="cannot be combined"):
        Schedule(STEPS, rule, sites="span") & Schedule(STEPS, rule, sites="block")
    both = Schedule(STEPS, rule, sites="span") & Schedule(STEPS, rule)
    assert both.sites == "span"


# ---- compiled ------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", slow_but("block", of=["block", "span"]))
def test_residuals_compiled_graphs_do_not_grow_and_nothing_recompiles(sites):
    torch._dynamo.reset()
    counters.clear()
    case = make_dit()
    denoiser = dqar_fx.transform(
        case.model,
        Schedule.interval(STEPS, 3, warmup=2).forecast(1),
        sites=sites,
        compile={"unit": "regional", "backend": "aot_eager"},
    )
    compare(case, denoiser, atol=1e-5)
    graphs = counters["stats"]["unique_graphs"]
    # five of the conditioning, the embedding, the tail; then STORE and FORECAST of one block,
    # or a block, and another tail
    assert graphs == 9
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(STEPS):
            denoiser(**case.inputs(step))
    assert not counters["graph_break"]
    assert counters["stats"]["unique_graphs"] == graphs
