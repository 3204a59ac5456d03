"""Samples at different timesteps in one call: one row for all, or none."""

from __future__ import annotations

import pytest
import torch

from dqar_fx.steps.samples import move_together
from dqar_fx.steps.streams import RunStream


def follow(*timesteps):
    """Whether each call in order has one row for all samples."""
    stream = RunStream(None, 0, "program", [], 0, 0)
    found = []
    for given in timesteps:
        found.append(move_together(stream, torch.tensor(given)))
        stream.is_new = False
    return found


ONE_ROW = {
    "all together": [[9, 9], [7, 7], [2, 2]],
    "one value for all": [9, 7, 2],
    "first frame stands still": [[0, 9, 9], [0, 7, 7], [0, 2, 2]],
    "tokens of a frame stand still": [[[0, 9], [0, 9]], [[0, 7], [0, 7]]],
    "stands still altogether": [[0, 9], [0, 9], [0, 7]],
}
MIXED = {
    "diffusion forcing": ([[9, 7, 2], [7, 2, 1], [2, 1, 0]], [True, False, False]),
    "two requests": ([[9, 5], [7, 3], [2, 1]], [True, False, False]),
    "a sample is replaced": ([[0, 7], [0, 2], [9, 1]], [True, True, False]),
    "samples change places": ([[0, 9], [7, 0], [0, 2]], [True, False, False]),
    "another one stands still": ([[0, 9, 9], [0, 7, 7], [0, 7, 5]], [True, True, False]),
    "begins to differ": ([[9, 9], [7, 7], [7, 5]], [True, True, False]),
    "another number of tokens": ([[0, 9], [0, 0, 7]], [True, False]),
}


@pytest.mark.parametrize("timesteps", ONE_ROW.values(), ids=ONE_ROW)
def test_samples_that_move_together_have_one_row(timesteps):
    assert follow(*timesteps) == [True] * len(timesteps)


@pytest.mark.parametrize(("timesteps", "expected"), MIXED.values(), ids=MIXED)
def test_samples_that_do_not_have_none(timesteps, expected):
    assert follow(*timesteps) == expected
