"""BudCache's search: what it tries, what it finds, and that an interrupted one goes on."""

from __future__ import annotations

import itertools
import random
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.contenders.bench import Bench
from benchmarks.contenders.kinds import EAGER
from benchmarks.pareto import budcache
from benchmarks.pareto.budcache import Search, Searched
from benchmarks.pareto.lineup import line_up
from benchmarks.pareto.options import Options
from dqar_fx import Action
from dqar_fx.optimiser.trials import ScheduleTrials


def distance(steps, right):
    """A loss with one minimum: how far computed steps are from the right ones."""
    return sum(abs(one - other) for one, other in zip(steps, right, strict=True))


def make_search(num_steps, budget, seed=0, limit=10_000, right=None):
    right = right or tuple(range(budget))
    return Search(
        lambda steps: distance(steps, right), num_steps, budget, limit, random.Random(seed)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 20), st.data())
def test_search_keeps_its_budget_and_its_first_steps(num_steps, data):
    budget = data.draw(st.integers(1, num_steps))
    limit = data.draw(st.integers(1, 40))
    search = make_search(num_steps, budget, data.draw(st.integers(0, 99)), limit)
    found = search.run()
    assert 1 <= len(search.tried) <= limit
    assert search.tried[found] == min(search.tried.values())
    for steps in search.tried:
        assert len(set(steps)) == budget
        assert list(steps) == sorted(steps)
        assert steps[: search.fixed] == tuple(range(max(1, budget // 4)))
        assert steps[-1] < num_steps


@pytest.mark.parametrize("seed", range(5))
def test_search_finds_the_only_minimum(seed):
    right = (0, 1, 4, 9, 10, 17)
    search = make_search(18, 6, seed, right=(0, 4, 9, 10, 13, 17))
    assert search.run() == (0, 4, 9, 10, 13, 17)
    assert make_search(18, 6, seed, right=right).run() == right


def test_neighbours_are_all_near_moves_and_some_far_ones():
    search = make_search(20, 4)
    steps = (0, 5, 9, 19)
    near = {
        tuple(sorted({*steps} - {source} | {target}))
        for source, target in itertools.product(steps[1:], range(1, 20))
        if abs(source - target) <= 3 and target not in steps
    }
    found = search.neighbours(steps)
    assert near <= set(found)
    assert len(found) == len(set(found)) <= len(near) + 2 * 3
    assert steps not in found


def test_moves_change_one_step_or_two():
    search = make_search(20, 6)
    steps = (0, 2, 5, 9, 13, 19)
    sizes = [len({*steps} - {*search.move(steps)}) for _ in range(400)]
    assert set(sizes) == {1, 2}
    assert 0.03 < sizes.count(2) / 400 < 0.2
    assert make_search(4, 4).move((0, 1, 2, 3)) == (0, 1, 2, 3)


def test_budgets_below_the_steps_take_part():
    options = Options.read(
        [
            "--only",
            "budcache",
            "--teacher",
            "0",
            "--budcache",
            "6",
            "30",
            "--lowering",
            "eager",
        ]
    )
    assert [each.setting for each in line_up(options, [])][1:] == [
        "BudCache, own scheduler, 6 of 50 steps",
        "BudCache, own scheduler, 30 of 50 steps",
        "BudCache, DPM-Solver++ 2M, 6 of 20 steps",
    ]
    assert Options.read([]).budcache == ()


@pytest.mark.slow
def test_search_runs_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(budcache, "PICTURES", 2)
    made, most, pictures = [], [], ScheduleTrials.pictures

    def note(self, schedule, *more):
        if len(made) == most[0]:
            raise KeyboardInterrupt
        made.append(schedule)
        return pictures(self, schedule, *more)

    monkeypatch.setattr(ScheduleTrials, "pictures", note)
    options = Options.read(["--lowering", "eager", "--steps", "6", "--samples", "2"])
    file = tmp_path / "tried.jsonl"
    recipe = Searched(None, 6, 3, 5, file)
    broken = pytest.raises(KeyboardInterrupt)
    for limit, num_new, outcome in (
        (3, 3, broken),
        (9, 2, nullcontext()),
        (9, 0, nullcontext()),
    ):
        most[:] = [limit]
        bench = Bench.of(options, "eager")
        with outcome:
            entrant = recipe.build(bench, EAGER)
        assert len(made) == num_new
        assert bench.original is bench.pipe.transformer
        made.clear()
    assert entrant.trials == 5 == len(file.read_text().splitlines())
    found = bench.made["budcache", recipe][0]
    entrant.module.prepare(**bench.task(0).example_call(bench.original))
    table = entrant.module.table
    assert np.flatnonzero(table.actions[:, 0] <= Action.STORE).tolist() == list(found)
    assert table.sites == ("transformer_blocks.0:12",)
