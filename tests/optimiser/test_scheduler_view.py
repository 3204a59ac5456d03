"""What a scheduler sees of a denoiser's outputs, found by looking."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqar_fx.optimiser.scheduler_view import SchedulerView


def look(outputs, given):
    """A view of outputs of which a scheduler was given that."""
    view, seen = SchedulerView(), []
    view.note(outputs)
    view.watch(lambda *args: seen.append(args))(given, "more")
    assert len(seen) == 1
    assert seen[0][0] is given  # the scheduler is given what it was
    return view


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1.1, 9), batch=st.integers(1, 3), seed=st.integers(0, 99))
def test_view_of_guidance_in_one_batch(scale, batch, seed):
    def combine(output):
        conditional, unconditional = output[:, :4].chunk(2)
        half = unconditional + scale * (conditional - unconditional)
        return torch.cat((half, half))

    output, other = (draw(2 * batch, 8, 6, 6, seed=s) for s in (seed, seed + 1))
    view = look((output,), combine(output))
    right = combine(other).double().flatten()
    torch.testing.assert_close(view((other,)), right, rtol=1e-4, atol=1e-4 * scale)


def test_view_of_a_single_stream_is_the_output():
    output = draw(2, 9, 12)
    view = look((output,), output)
    torch.testing.assert_close(view((output,)), output.double().flatten())


@pytest.mark.parametrize(
    ("outputs", "given"),
    [
        ((draw(2, 4, 6, 6),), draw(2, 4, 6, 6, seed=5)),  # something else is added
        ((draw(2, 4, 6, 6),), draw(2, 4, 3, 3)),
        ((draw(2, 4, 6, 6), draw(2, 3)), draw(2, 4, 6, 6)),
        ((draw(2, 4),), draw(2)),
    ],
)
def test_view_of_something_else_is_all_outputs(outputs, given):
    view = look(outputs, given)
    assert view.matrix is None
    everything = torch.cat([output.flatten() for output in outputs]).double()
    assert torch.equal(view(outputs), everything)


def test_view_looks_once():
    output = draw(2, 4, 6, 6)
    view = look((output,), 2 * output)
    matrix = view.matrix
    view.note((output,))
    view.watch(lambda given: given)(3 * output)
    assert view.matrix is matrix
