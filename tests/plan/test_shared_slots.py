"""Slots whose lives do not overlap share memory, and nothing stale is ever read."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.passes import FORMATS, TensorSpec
from dqar_fx.plan.slots import find_lives, share_slots
from dqar_fx.program import program
from tests.helpers.hook_oracle import ForecastOracle, Oracle
from tests.helpers.models import make_dit, make_pixart
from tests.helpers.slow_cases import slow_but
from tests.helpers.table_texts import table_of

SITES = 3
ONE_BYTE = TensorSpec((1,), (1,), torch.uint8, torch.device("cpu"))
DISJOINT = ("CRRCCCCC", "CCCCRRCC", "CCCCCCCR")
"""Each site is stored after the last read of the one before."""


def specs_of(count, spec=ONE_BYTE):
    return {(column, 0, 0, 0): spec for column in range(count)}


def num_buffers(owners):
    return len(set(owners.values()))


def prepared(case, schedule, **options):
    return dqar_fx.transform(case.model, schedule, example_inputs=case.inputs(0), **options)


def held_bytes(denoiser):
    """Bytes of the storages of all streams' slots."""
    streams = denoiser.program.streams.values()
    buffers = [b for stream in streams for b in stream.slots.buffers.values()]
    storages = {b.untyped_storage().data_ptr(): b.untyped_storage() for b in buffers}
    return sum(storage.nbytes() for storage in storages.values())


def trajectory(denoiser, case, steps, seed=0):
    """What a denoiser gives at some steps."""
    found = []
    for step in steps:
        with denoiser.cache_context("one", step_index=step):
            found.append(denoiser(**case.inputs(step, seed)).sample)
    return found


# ---- which slots share -------------------------------------------------------------------


def test_lives_reach_from_the_first_store_to_the_last_read():
    table = table_of("SRCSRC", "CCCSRR", "CCCCCC")
    assert find_lives(table) == {0: (0, 4), 1: (3, 5)}


@pytest.mark.parametrize(
    ("columns", "buffers"),
    [
        (("SRCCCC", "CCSRCC", "CCCCSR"), 1),
        (("SRRCCC", "CCSRCC", "CCCCSR"), 2),  # one's last read is the other's store
        (("SRCCCC", "CSRCCC", "CCCSRC"), 2),
        (("SRSRSR", "SRSRSR", "SRSRSR"), 3),
        (("CCCCSR", "SRCCCC", "CCSRCC"), 1),
    ],
)
def test_share_slots_by_lives(columns, buffers):
    assert num_buffers(share_slots(specs_of(3), table_of(*columns))) == buffers


def test_share_slots_only_equal_specs_and_no_flags():
    table = table_of("SRCC", "CCSR")
    (*kept, flag) = FORMATS["fp8"].specs(TensorSpec((2, 4), (4, 1), torch.float32, cpu()))
    parts = {(c, 0, 0, b): s for c in (0, 1) for b, s in enumerate((*kept, flag))}
    owners = share_slots(parts, table)
    assert {key: owners[key][0] for key in parts if key[0] == 1} == {
        (1, 0, 0, b): int(b == len(kept)) for b in range(len(parts) // 2)
    }
    other = {**specs_of(1), (1, 0, 0, 0): TensorSpec((1,), (1,), torch.int8, cpu())}
    assert num_buffers(share_slots(other, table)) == 2


def cpu():
    return torch.device("cpu")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("CSR"), min_size=9, max_size=9), min_size=1, max_size=7)
)
def test_share_slots_as_few_as_lives_at_the_busiest_step(drawn):
    schedule = Schedule.from_actions(["C" + "".join(c).replace("S", "C") for c in drawn])
    table = schedule.resolve([f"site_{i}" for i in range(len(drawn))])
    lives = find_lives(table)
    owners = share_slots(
        {key: ONE_BYTE for key in specs_of(len(drawn)) if key[0] in lives}, table
    )
    busiest = max(
        (sum(a <= t <= b for a, b in lives.values()) for t in range(table.num_steps)),
        default=0,
    )
    assert num_buffers(owners) == busiest
    for key, owner in owners.items():
        for other, its in owners.items():
            if key < other and owner == its:
                (a, b), (c, d) = lives[key[0]], lives[other[0]]
                assert b < c or d < a


# ---- a denoiser --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def case():
    return make_dit(layers=SITES)


@pytest.fixture(scope="module")
def denoiser(case):
    """Its graphs can follow every table here."""
    return prepared(case, Schedule.from_actions(["CCFF"] * SITES, orders=1))


@pytest.mark.parametrize("cache", slow_but("same", "int8", of=FORMATS))
def test_denoiser_allocates_what_it_says(cache, case):
    denoiser = prepared(case, Schedule.from_actions(DISJOINT), cache=cache)
    whole = prepared(case, Schedule.from_actions("CRRRRRRR"), cache=cache)
    trajectory(denoiser, case, range(8))
    assert denoiser.cache_bytes == held_bytes(denoiser)
    assert denoiser.cache_bytes <= whole.cache_bytes // SITES + SITES


def test_denoiser_that_shares_equals_hooks(case):
    denoiser, oracle = prepared(case, Schedule.from_actions(DISJOINT)), Oracle(case.model)
    for seed in range(2):
        for step, result in enumerate(trajectory(denoiser, case, range(8), seed)):
            expected = oracle(denoiser.table.actions[step], **case.inputs(step, seed))
            assert torch.equal(result, expected), (seed, step)


def test_denoiser_of_two_sites_per_block_shares():
    case = make_pixart()
    actions = ["CRRCCCCC", "CCCCRRRR"] * 3
    denoiser, oracle = prepared(case, Schedule.from_actions(actions)), Oracle(case.model)
    kept = [sum(s.nbytes for s in site.kept) for site in denoiser.explain().sites]
    assert denoiser.cache_bytes == sum(kept) // 2
    for step, result in enumerate(trajectory(denoiser, case, range(8))):
        assert torch.equal(result, oracle(denoiser.table.actions[step], **case.inputs(step)))


def test_denoiser_forecasts_that_share_equal_hooks(case):
    schedule = Schedule.from_actions(["CCFFCCCC", "CCCCCCFF", "CCCCCCRR"], orders=1)
    denoiser = prepared(case, schedule)
    oracle = ForecastOracle(case.model, denoiser.table)
    assert num_buffers(denoiser.program.slot_owners) < len(denoiser.program.slot_specs)
    for step, result in enumerate(trajectory(denoiser, case, range(8))):
        expected = oracle(step, **case.inputs(step))
        assert (result - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_denoiser_addresses_stay(case):
    denoiser = prepared(case, Schedule.from_actions(DISJOINT))
    found = []
    for seed in range(2):
        trajectory(denoiser, case, range(8), seed)
        (stream,) = denoiser.program.streams.values()
        found.append([b.data_ptr() for b in stream.slots.buffers.values()])
    assert found[0] == found[1]
    assert len(set(found[0])) == 1


@pytest.mark.filterwarnings("ignore:step")
def test_denoiser_that_starts_cold_overwrites_and_forgets(case):
    """The second site stores cold where the table reads: the first one's output is gone."""
    denoiser = prepared(case, Schedule.from_actions(["CRRCCCCC", "CCCCRRRR", "C" * 8]))
    trajectory(denoiser, case, (0, 5))
    (stream,) = denoiser.program.streams.values()
    assert stream.slots.slot_state.kept[:2] == ((), (5,))


@st.composite
def schedules(draw):
    """Any mix of reuse and forecasts in some of the steps."""
    texts = st.text("CRF", min_size=7, max_size=7).map(lambda text: f"C{text}")
    return Schedule.from_actions(
        draw(st.lists(texts, min_size=SITES, max_size=SITES)), orders=1
    )


def idle(specs, _table):
    """No slot shares another's buffer."""
    return {key: key for key in specs}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:step")
@settings(max_examples=40, deadline=None)
@given(
    schedule=schedules(),
    runs=st.lists(st.sets(st.integers(0, 7), min_size=1).map(sorted), min_size=1, max_size=3),
)
def test_denoiser_that_shares_equals_one_that_does_not(case, denoiser, schedule, runs):
    """Bit for bit, also where trajectories skip steps, begin late or are broken off."""
    sharing = denoiser.with_schedule(schedule)
    with mock.patch.object(program, "share_slots", idle):
        apart = denoiser.with_schedule(schedule)
    assert sharing.cache_bytes <= apart.cache_bytes
    for seed, steps in enumerate(runs):
        pairs = zip(*(trajectory(d, case, steps, seed) for d in (sharing, apart)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        for each in (sharing, apart):
            each.reset()
    trajectory(sharing, case, range(8))
    assert sharing.cache_bytes == held_bytes(sharing)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("CR", min_size=7, max_size=7), min_size=SITES, max_size=SITES))
def test_denoiser_of_any_table_equals_hooks(case, denoiser, texts):
    schedule = Schedule.from_actions([f"C{text}" for text in texts])
    twin, oracle = denoiser.with_schedule(schedule), Oracle(case.model)
    for step, result in enumerate(trajectory(twin, case, range(8))):
        assert torch.equal(result, oracle(twin.table.actions[step], **case.inputs(step)))
