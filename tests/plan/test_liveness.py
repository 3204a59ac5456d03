"""Conditioning gives what is read: per step, or of any step of a trajectory."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from benchmarks.harness.macs import count_macs
from dqar_fx import Schedule
from tests.helpers.hook_oracle import Oracle, ResidualOracle
from tests.helpers.lowered_variants import count_variants
from tests.helpers.models import MAKERS, make_dit
from tests.helpers.slow_cases import slow_but

LAYERS, BATCH, WIDTH = 3, 2, 60
MODULATION = BATCH * WIDTH * WIDTH
"""Multiply-accumulates of one of the six parts of a block's modulation."""


@pytest.fixture(scope="module")
def case():
    return make_dit(layers=LAYERS)


def steps_of(case, denoiser, steps, seed=0, timesteps=None):
    """What a denoiser gives, step by step, each called as step of one trajectory."""
    found = []
    for step in steps:
        inputs = case.inputs(step, seed)
        if timesteps is not None:
            inputs["timestep"] = timesteps[step].expand(case.latent_shape[0])
        with denoiser.cache_context("one", step_index=step):
            found.append(denoiser(**inputs).sample)
    return found


def times_of(case, steps):
    return torch.linspace(case.top, case.top / 10, steps)


def close(found, expected):
    return (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def counted(run):
    """Multiply-accumulates of a function; of what was compiled, run as it was handed over."""
    with torch.compiler.set_stance("force_eager"):  # a mode cannot be around what is compiled
        return count_macs(run)


# ---- what is counted ---------------------------------------------------------------------


def graphs_of(case, schedule, sites, steps, **options):
    """Graphs that a compiled denoiser hands over, and what it gives."""
    graphs = []

    def backend(gm, _):
        graphs.append(gm)
        return gm.forward

    denoiser = dqar_fx.transform(
        case.model, schedule, sites=sites, compile={"backend": backend}, **options
    )
    torch._dynamo.reset()
    return graphs, steps_of(case, denoiser, steps), denoiser


@pytest.mark.filterwarnings("ignore:step")
@pytest.mark.parametrize("sites", slow_but("block", of=["attention", "all", "block"]))
def test_compiled_conditioning_is_one_for_all_rows(sites, case):
    """Per step, too: rows that read less, and cold ones, take no graphs of their own."""
    texts = ["CRRCRR", "CCRRCR", "CRCRCC"] * (2 if sites == "all" else 1)
    schedule = Schedule.from_actions(texts)
    graphs, _, denoiser = graphs_of(case, schedule, sites, range(6), conditioning="step")
    program = denoiser.program
    (stage,) = (s for s in program.plan.stages if program.roles.timestep in s.leaves)
    regions = stage.plan.regions.values()
    counts = [count_variants(denoiser.program.lowering, region) for region in regions]
    assert counts == [1] * len(counts)
    num_graphs = len(graphs)
    steps_of(case, denoiser, [2, 4, 5], seed=1)
    counts = [count_variants(denoiser.program.lowering, region) for region in regions]
    assert counts == [1] * len(counts)
    assert num_graphs <= len(denoiser.program.variants)


def test_compiled_step_evaluates_conditioning_whole_or_not_at_all(case):
    """Where all blocks are read, the last layer's is read still."""
    options = {"conditioning": "step", "compile": {"backend": "eager"}}
    reusing = dqar_fx.transform(case.model, Schedule.from_actions("CRR"), **options)
    full = dqar_fx.transform(case.model, Schedule.compute_all(3), **options)
    for denoiser in (reusing, full):
        steps_of(case, denoiser, range(3))  # compiles
        denoiser.reset()
        steps_of(case, denoiser, [0])
    costs = [counted(lambda d=d: steps_of(case, d, [1])) for d in (reusing, full)]
    report = reusing.report(device="A100")
    assert costs[1] - costs[0] == report.computed.macs - report.reused.macs


@pytest.mark.parametrize(
    ("texts", "parts"),
    [
        (["CCCC"] * LAYERS, 6 * LAYERS),
        (["CRRR"] * LAYERS, 6 * LAYERS),  # computed at the first step
    ],
)
def test_table_of_a_trajectory_has_what_any_row_reads(case, texts, parts):
    denoiser = dqar_fx.transform(
        case.model, Schedule.from_actions(texts), conditioning="trajectory"
    )
    steps_of(case, denoiser, range(4), timesteps=times_of(case, 4))
    assert tabulated_parts(denoiser)[0] == parts


def tabulated_parts(denoiser):
    """Tensors that are tabulated beside those of the last layer, and their bytes."""
    (stream,) = denoiser.program.streams.values()
    (known,) = stream.memo.tabulated.values()
    values = [value for value in known.rows[0] if value is not None]
    storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in values}
    return len(values) - 2, sum(storages.values())


@pytest.mark.slow
def test_table_bytes_are_those_held(case):
    for texts in ("CCCC", "CRRR"):
        for options in ({"conditioning": "trajectory"}, {"compile": {"backend": "eager"}}):
            denoiser = dqar_fx.transform(case.model, Schedule.from_actions(texts), **options)
            steps_of(case, denoiser, range(4), timesteps=times_of(case, 4))
            assert denoiser.program.table_bytes == tabulated_parts(denoiser)[1]


def test_blocks_that_are_read_need_no_conditioning(case):
    """Eager too: a whole product that nothing reads reorders no sum."""
    schedule = Schedule.from_actions("CRRR")
    denoiser = dqar_fx.transform(case.model, schedule, sites="block")
    oracle = None
    for step, result in enumerate(steps_of(case, denoiser, range(4))):
        oracle = oracle or ResidualOracle(case.model, denoiser.table)
        assert torch.equal(result, oracle(step, **case.inputs(step)))
    steps_of(case, denoiser, [0])
    cost = counted(lambda: steps_of(case, denoiser, [1]))
    # the patches' embedding, the last layer's modulation and product, its own embedder
    assert cost < 0.1 * counted(lambda: case.model(**case.inputs(1)))


@pytest.mark.parametrize("sites", slow_but("block", of=["attention", "all", "block", "span"]))
@pytest.mark.parametrize("way", ["step", "trajectory", "compiled"])
def test_report_counts_what_is_read(way, sites, case):
    options = {"compile": {"backend": "eager"}} if way == "compiled" else {"conditioning": way}
    schedule = Schedule.from_actions("CRRC")
    denoiser = dqar_fx.transform(case.model, schedule, sites=sites, **options)
    times = None if way == "step" else times_of(case, 4)
    steps_of(case, denoiser, range(4), timesteps=times)
    denoiser.reset()
    cost = counted(lambda: steps_of(case, denoiser, range(4), timesteps=times))
    assert denoiser.report(device="A100").macs == cost


# ---- what is given -----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["step", "trajectory"])
@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_rows_that_read_less_equal_hooks(name, way):
    case = MAKERS[name]()
    denoiser = dqar_fx.transform(case.model, Schedule.from_actions("CRRCR"), conditioning=way)
    times = times_of(case, 5)
    oracle = Oracle(case.model)
    for step, result in enumerate(steps_of(case, denoiser, range(5), timesteps=times)):
        inputs = {**case.inputs(step), "timestep": times[step].expand(case.latent_shape[0])}
        expected = oracle(denoiser.table.actions[step], **inputs)
        assert torch.equal(result, expected) if way == "step" else close(result, expected)


WAYS = {
    "step": {"conditioning": "step"},
    "trajectory": {"conditioning": "trajectory"},
    "compiled": {"compile": {"backend": "eager"}, "conditioning": "step"},
}


@pytest.fixture(scope="module")
def captured(case):
    """Makes denoisers whose graphs follow any table of blocks, by how conditioning comes."""

    @cache
    def make(way):
        return dqar_fx.transform(
            case.model,
            Schedule.compute_all(6),
            sites="block",
            example_inputs={**case.inputs(0), "timestep": times_of(case, 6)[0].expand(BATCH)},
            **WAYS[way],
        )

    return make


@pytest.mark.parametrize("way", slow_but("step", "trajectory", of=WAYS))
@pytest.mark.filterwarnings("ignore:step")
@settings(max_examples=5, deadline=None)
@given(
    texts=st.lists(st.text("CR", min_size=5, max_size=5), min_size=LAYERS, max_size=LAYERS),
    runs=st.lists(
        st.tuples(st.sets(st.integers(0, 5), min_size=1).map(sorted), st.integers(0, 9)),
        min_size=1,
        max_size=3,
    ),
)
def test_conditioning_that_is_read_is_never_stale(case, captured, way, texts, runs):
    """Steps skipped, cold starts, other labels: the same as if all were evaluated."""
    schedule = Schedule.from_actions([f"C{text}" for text in texts])
    denoiser, alone = (captured(each).with_schedule(schedule) for each in (way, "step"))
    alone.program.liveness.needs = lambda _: None  # all is evaluated
    times = times_of(case, 6)
    for seed, (steps, label) in enumerate(runs):
        case.given["class_labels"] = torch.tensor([label, 3])
        found = steps_of(case, denoiser, steps, seed, times)
        for each, expected in zip(
            found, steps_of(case, alone, steps, seed, times), strict=True
        ):
            assert torch.equal(each, expected) if way == "step" else close(each, expected)
