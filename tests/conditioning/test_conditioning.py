"""Conditioning evaluated ahead for a whole trajectory: the same values, never stale ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dqar_fx
from dqar_fx import Schedule
from dqar_fx.conditioning import conditioning
from tests.helpers.hook_oracle import Oracle
from tests.helpers.models import MAKERS, make_dit, make_sd3
from tests.helpers.slow_cases import slow_but

STEPS = 5


def close(result, expected):
    error = (result - expected).abs().max() / expected.abs().max()
    return error < 2e-5


def compiled(case, steps=STEPS):
    return dqar_fx.transform(
        case.model, Schedule.compute_all(steps), compile={"backend": "eager"}
    )


def run(case, denoiser, timesteps, seed=0, *, expect=None):
    """One trajectory over the elements of a schedule; each step against the original."""
    batch = case.latent_shape[0]
    for step, t in enumerate(timesteps):
        inputs = {**case.inputs(step, seed), "timestep": t.expand(batch)}
        inputs.update((expect or {}).get(step, {}))
        with torch.no_grad():
            expected = case.model(**inputs).sample
        assert close(denoiser(**inputs).sample, expected), step


def rows_ahead(denoiser):
    (stream,) = denoiser.program.streams.values()
    return [len(known.rows or ()) for known in stream.memo.tabulated.values()]


def schedule_of(case, steps=STEPS):
    return torch.linspace(case.top, case.top / 10, steps)


@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_conditioning_ahead_equals_the_original(name):
    case = MAKERS[name]()
    denoiser = compiled(case)
    run(case, denoiser, schedule_of(case))
    assert rows_ahead(denoiser) == [STEPS]


@pytest.fixture
def tabulated(monkeypatch):
    """Notes the calls that tabulate a stage."""
    calls, tabulate = [], conditioning.Conditioning._tabulate
    monkeypatch.setattr(
        conditioning.Conditioning,
        "_tabulate",
        lambda self, *args: calls.append(1) or tabulate(self, *args),
    )
    return calls


def test_conditioning_ahead_is_evaluated_once_per_prompt(tabulated):
    case = make_dit(layers=2)
    denoiser = compiled(case)
    for seed in range(2):
        run(case, denoiser, schedule_of(case), seed)
    assert len(tabulated) == 1
    case.given["class_labels"][0] += 1
    run(case, denoiser, schedule_of(case))
    assert len(tabulated) == 2
    run(case, denoiser, schedule_of(case) * 1.01)
    assert len(tabulated) == 3


def run_named(case, denoiser, names, timesteps):
    """A trajectory of several streams, each with labels of its own."""
    for step, t in enumerate(timesteps):
        for name, labels in names.items():
            inputs = {**case.inputs(step), "timestep": t.expand(2), "class_labels": labels}
            with torch.no_grad(), denoiser.cache_context(name):
                assert close(denoiser(**inputs).sample, case.model(**inputs).sample)


def test_conditioning_of_equal_prompts_is_evaluated_once_for_all_streams(tabulated):
    case = make_dit(layers=2)
    denoiser = compiled(case)
    one, equal, other = torch.tensor([[1, 2], [1, 2], [2, 1]])
    run_named(case, denoiser, {"a": one, "b": equal, "c": other}, schedule_of(case))
    assert len(tabulated) == 2
    with torch.no_grad():
        for parameter in case.model.parameters():
            parameter.mul_(1.01)
    run_named(case, denoiser, {"a": one, "b": equal, "c": other}, schedule_of(case))
    assert len(tabulated) == 4


def test_conditioning_of_a_prompt_that_was_written_to_is_not_taken(tabulated):
    case = make_dit(layers=2)
    denoiser = compiled(case)
    labels = torch.tensor([1, 2])
    run_named(case, denoiser, {"a": labels}, schedule_of(case))
    run_named(case, denoiser, {"b": labels.clone()}, schedule_of(case))
    assert len(tabulated) == 1
    labels.add_(1)
    run_named(case, denoiser, {"c": labels - 1}, schedule_of(case))
    run_named(case, denoiser, {"d": labels}, schedule_of(case))
    assert len(tabulated) == 2


def test_conditioning_of_equal_prompts_in_sessions_is_evaluated_once(tabulated):
    case = make_dit(layers=2)
    denoiser = compiled(case)
    with denoiser.session():
        run(case, denoiser, schedule_of(case))
        with denoiser.session():
            run(case, denoiser, schedule_of(case))
    assert len(tabulated) == 1


def test_conditioning_is_not_taken_over_where_nothing_counted_a_write(tabulated):
    case = make_dit(layers=2)
    denoiser = compiled(case)
    labels = torch.tensor([1, 2])
    run_named(case, denoiser, {"a": labels}, schedule_of(case))
    labels.numpy()[:] = 3, 4  # another stream of the tensor is of its new values
    run_named(case, denoiser, {"b": labels}, schedule_of(case))
    assert len(tabulated) == 2


def test_conditioning_ahead_is_evaluated_again_in_mid_run():
    """Weights are written to in a run, and seen at a step that reuses, as another begins."""
    case, other = make_sd3(), make_sd3()
    schedule = Schedule.interval(4, 2)
    denoiser = dqar_fx.transform(case.model, schedule, conditioning="trajectory")
    denoiser.attach_timesteps(torch.tensor([case.top - case.fall * s for s in range(4)]))
    oracle = Oracle(other.model)

    def check(step):
        expected = oracle(denoiser.table.actions[step], **case.inputs(step))
        assert close(denoiser(**case.inputs(step)).sample, expected)

    denoiser(**case.inputs(0))
    denoiser.reset()
    check(0)
    for model in (case.model, other.model):
        with torch.no_grad():
            model.context_embedder.weight.mul_(1.5)
    with denoiser.session():
        denoiser(**case.inputs(0))
    check(1)


def test_conditioning_eager_is_evaluated_per_step():
    case = make_dit(layers=2)
    denoiser = dqar_fx.transform(case.model, Schedule.compute_all(STEPS))
    run(case, denoiser, schedule_of(case))
    assert rows_ahead(denoiser) == []


def test_conditioning_ahead_too_large_is_evaluated_per_step(monkeypatch):
    monkeypatch.setattr(conditioning, "MAX_TABULATED_BYTES", 1000)
    case = make_dit(layers=2)
    denoiser = compiled(case)
    run(case, denoiser, schedule_of(case))
    assert rows_ahead(denoiser) == [0]


@pytest.fixture(scope="module")
def shared():
    case = make_dit(layers=2)
    return case, compiled(case, steps=8)


@pytest.mark.filterwarnings("ignore:the trajectory has")
@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    lengths=st.lists(st.integers(1, 8), min_size=1, max_size=3),
)
def test_conditioning_is_never_stale(shared, data, lengths):
    """Other labels at any step, trajectories of any length, broken off at any step."""
    case, denoiser = shared
    for seed, length in enumerate(lengths):
        labels = data.draw(st.dictionaries(st.integers(0, length - 1), st.integers(0, 9)))
        stop = data.draw(st.integers(1, length))
        given_then = {k: {"class_labels": torch.tensor([v, 3])} for k, v in labels.items()}
        timesteps = schedule_of(case, length)
        run(case, denoiser, timesteps[:stop], seed, expect=given_then)
