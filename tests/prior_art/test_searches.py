"""BudCache, InvarDiff and L2P: what they found again in plain loops, and damaged files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import Schedule, ScheduleError
from dqar_fx.prior_art import read_budcache, read_invardiff, read_l2p
from dqar_fx.prior_art.l2p import POINTS
from tests.helpers.models import make_dit
from tests.helpers.table_texts import texts_of

LAYERS = 2
SITES = [f"transformer_blocks.{i}.{name}" for i in range(LAYERS) for name in ("attn1", "ff")]


# ---- BudCache ----------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data(), steps=st.integers(1, 30))
def test_steps_of_budcache_reuse_all_blocks(data, steps):
    cached = data.draw(st.sets(st.integers(1, max(steps - 1, 1)).filter(lambda s: s < steps)))
    schedule = read_budcache(sorted(cached), steps)
    assert schedule.sites == "span"
    (text,) = texts_of(schedule.resolve(("all",)))
    assert text.replace("S", "C") == "".join("CR"[step in cached] for step in range(steps))


def test_a_checkpoint_of_budcache_is_read_and_runs(tmp_path):
    file = tmp_path / "flux_6nfe3_hash.pt"
    torch.save({"cache_step": [1, 3, 4], "best_loss": 0.25}, file)
    schedule = read_budcache(file, 6)
    assert schedule == read_budcache({"cache_step": [1, 3, 4]}, 6)
    case = make_dit(layers=LAYERS)
    denoiser = dqar_fx.transform(case.model, schedule, sites=schedule.sites)
    for step in range(6):
        denoiser(**case.inputs(step))
    assert denoiser.runs[-1].num_reused == denoiser.runs[-1].num_promised == 3


def test_steps_may_be_an_array_and_a_file_that_is_none_is_refused(tmp_path):
    assert read_budcache(np.array([1, 3]), 6) == read_budcache([np.int64(1), 3], 6)
    (tmp_path / "odd.pt").write_text("hello")
    with pytest.raises(ScheduleError, match="no steps of BudCache can be read"):
        read_budcache(tmp_path / "odd.pt", 6)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([0, 2], "cache_step has 0: expected steps from 1 to 5"),
        ([2, 6], "cache_step has 6"),
        ([1.5], r"cache_step has 1\.5"),
        ({"best_loss": 1}, "found None"),
        ("nowhere.pt", "no steps of BudCache can be read from nowhere.pt"),
    ],
)
def test_steps_that_are_none_are_refused(steps, message):
    with pytest.raises(ScheduleError, match=message):
        read_budcache(steps, 6)


# ---- InvarDiff ---------------------------------------------------------------------------


def draw_plan(seed, steps=9):
    rng = np.random.default_rng(seed)
    msa, mlp = rng.random((2, steps, LAYERS)) < 0.4
    whole = rng.random(steps) < 0.3
    for book in (msa, mlp, whole):
        book[0] = False
    return {
        "step_cache_book": whole.tolist(),
        "msa_cache_book": msa.tolist(),
        "mlp_cache_book": mlp.tolist(),
    }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999))
def test_a_plan_of_invardiff_equals_its_loop(seed):
    plan = draw_plan(seed)
    texts = texts_of(read_invardiff(plan).resolve(SITES))
    for column, path in enumerate(SITES):
        layer, book = column // 2, ("msa_cache_book", "mlp_cache_book")[column % 2]
        wanted = "".join(
            "R" if plan["step_cache_book"][step] or plan[book][step][layer] else "C"
            for step in range(9)
        )
        assert texts[column].replace("S", "C") == wanted, path


def test_a_file_of_invardiff_is_read(tmp_path):
    file = tmp_path / "cache_books.json"
    file.write_text(json.dumps(draw_plan(3)))
    table = read_invardiff(file).resolve(SITES)
    names = {"msa_cache_book": "attn", "mlp_cache_book": "mlp"}
    renamed = [path.replace("attn1", "attn").replace("ff", "mlp") for path in SITES]
    other = read_invardiff(file, names=names).resolve(renamed)
    assert texts_of(table) == texts_of(other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mlp_cache_book": [[False, True]] * 4}, r"mlp_cache_book': \[4, 2\]"),
        ({"mlp_cache_book": [[False], [True, True]]}, r"true or false, \[steps, layers\]"),
        ({"step_cache_book": [0] * 9}, r"true or false, \[steps\]"),
        ({"step_cache_book": [True] * 9}, "at step 0"),
    ],
)
def test_plans_that_are_none_are_refused(changes, message):
    with pytest.raises(ScheduleError, match=message):
        read_invardiff(draw_plan(3) | changes)


def test_plans_of_other_models_are_refused(tmp_path):
    flux = {"step_cache_book": [False], "Transformer_cache_book": {}}
    with pytest.raises(
        ScheduleError, match=r"for a DiT has .* found .*Transformer_cache_book"
    ):
        read_invardiff(flux)
    with pytest.raises(ScheduleError, match="no plan of InvarDiff can be read"):
        read_invardiff(tmp_path / "nothing.json")
    with pytest.raises(ScheduleError, match="expected a mapping of msa_cache_book"):
        read_invardiff(draw_plan(3), names={"attn": "attn1"})
    same = {"msa_cache_book": "ff"}
    with pytest.raises(ScheduleError, match="names of their own"):
        read_invardiff(draw_plan(3), names=same)
    with pytest.raises(ScheduleError, match="names of their own"):
        read_invardiff(draw_plan(3), names=["attn"])
    with pytest.raises(ScheduleError, match="means none of"):
        read_invardiff(draw_plan(3)).resolve(SITES[:2])


# ---- L2P ---------------------------------------------------------------------------------


def recur(matrix, computed, outputs):
    """Its recursion: what was predicted counts as an output from then on."""
    seen = []
    for step, output in enumerate(outputs):
        if computed[step]:
            seen.append(output)
        else:
            seen.append(sum(matrix[step - 1, j] * seen[j] for j in range(step)))
    return seen


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), every=st.integers(2, 5))
def test_weights_of_l2p_give_what_its_recursion_gives(seed, every):
    rng, steps = np.random.default_rng(seed), 3 * every
    matrix, outputs = rng.normal(size=(20, 20)), rng.normal(size=(steps, 5))
    schedule = read_l2p(matrix, Schedule.interval(steps, every))
    table = schedule.resolve(SITES)
    computed = [row[0].letter != "F" for row in table.rows] if False else None
    letters = texts_of(table)[0]
    computed = [letter != "F" for letter in letters]
    right = recur(matrix, computed, outputs)
    for step in range(steps):
        if not computed[step]:
            kept = table.kept[step][0]
            weights = table.weights[step, 0, : len(kept)]
            assert np.allclose(weights @ outputs[list(kept)], right[step])
    assert np.array_equal(table.weights[:, 0], table.weights[:, -1])


def test_the_sum_of_weights_of_older_outputs_stands():
    matrix = np.full((12, 12), 0.1)
    table = read_l2p(matrix, Schedule.from_actions("CCCCCCCR")).resolve(("all",))
    assert table.weights.shape == (8, 1, POINTS)
    assert table.weights[7, 0].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.4])


def test_a_file_of_l2p_is_read_and_runs(tmp_path):
    file = tmp_path / "weight.txt"
    matrix = np.tril(np.full((8, 8), 0.1)) + 0.6 * np.eye(8)
    file.write_text(f"{matrix.tolist()}\n")
    schedule = read_l2p(file, Schedule.interval(8, 3, warmup=2))
    assert schedule == read_l2p(matrix, Schedule.interval(8, 3, warmup=2))
    case = make_dit(layers=LAYERS)
    denoiser = dqar_fx.transform(case.model, schedule, sites=schedule.sites)
    for step in range(8):
        denoiser(**case.inputs(step))
    assert denoiser.runs[-1].num_reused == denoiser.runs[-1].num_promised == 4


@pytest.mark.parametrize(
    ("weights", "schedule", "message"),
    [
        (np.eye(4), Schedule.interval(8, 2), "for 4 steps, but the schedule has 8"),
        (np.ones((8, 7)), Schedule.interval(8, 2), "a square of numbers"),
        ([[1, None], [2, 3]], Schedule.interval(2, 2), "a square of numbers"),
        (np.eye(8), Schedule.interval(every=2), "has no number of steps"),
        ("nowhere.txt", Schedule.interval(8, 2), "no weights of L2P can be read"),
    ],
)
def test_weights_that_are_none_are_refused(weights, schedule, message):
    with pytest.raises(ScheduleError, match=message):
        read_l2p(weights, schedule)
