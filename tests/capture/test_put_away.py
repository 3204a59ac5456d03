"""What blocks hold that do not run is not traced: the graph is the one of the whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dqar_fx.capture import capture as capturing
from tests.helpers.repeated_block_models import WIDTH, Tower, compare, inputs

LAST = 4


class Row(nn.Module):
    """Five blocks; what else is done is told by `after`."""

    def __init__(self, after=None, held=lambda _: None):
        super().__init__()
        blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(LAST + 1)]
        self.blocks = nn.ModuleList(blocks)
        self.after, self.held = after, (held(self.blocks),)  # no part of the model

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x if self.after is None else self.after(self, x)


def weight_or_not(model, x):
    try:
        return x + model.blocks[LAST][0].weight.sum()
    except Exception:
        return x


def is_there(model, x):
    return x + 1 if hasattr(model.blocks[LAST][0], "weight") else x


AT_LAST = {
    "its weight is read": lambda model, x: x @ model.blocks[LAST][0].weight,
    "its weight is read if that can be": weight_or_not,
    "its weight is asked for": is_there,
    "all weights are counted": lambda model, x: x * sum(1 for _ in model.parameters()),
    "all modules are counted": lambda model, x: x * len(list(model.modules())),
    "all buffers are looked for": lambda model, x: x * (len(list(model.buffers())) + 2),
    "the kind of weights is asked for": lambda model, x: x.to(next(model.parameters()).dtype),
    "it lacks an attribute": lambda model, x: x * hasattr(model.blocks[LAST][0], "none"),
}


@pytest.fixture
def attempts(monkeypatch):
    """What each attempt to trace blocks once put away."""
    made, original = [], capturing.PutAway

    class Noted(original):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(capturing, "PutAway", Noted)
    return made


@pytest.mark.parametrize("name", AT_LAST)
def test_a_model_that_looks_at_a_block_has_the_graph_of_all_blocks(name):
    assert compare(Row(AT_LAST[name]).eval(), (torch.randn(3, WIDTH),)) is not None


@pytest.mark.parametrize(
    ("gains", "met"), [([1.0] * 5, [False]), ([1.0] * 4 + [0.5], [True, False])]
)
def test_a_block_that_has_to_run_is_traced_with_what_it_holds(gains, met, attempts):
    model = Tower([{"inner": 3}] * 5, gains).eval()
    assert compare(model, inputs()) is not None
    assert [each.is_met for each in attempts] == met


def test_a_part_that_is_held_elsewhere_is_refused():
    model = Row(lambda model, x: model.held[0](x), lambda blocks: blocks[LAST][1])
    assert compare(model.eval(), (torch.randn(3, WIDTH),)) is None


def test_a_weight_that_is_held_elsewhere():
    model = Row(lambda model, x: x @ model.held[0], lambda blocks: blocks[LAST][0].weight)
    assert compare(model.eval(), (torch.randn(3, WIDTH),)) is not None


def test_blocks_with_tensors_of_others_are_not_put_away(attempts):
    model = Row()
    model.blocks[LAST][0].bias = model.blocks[0][0].bias
    compare(model.eval(), (torch.randn(3, WIDTH),))
    assert [each.is_met for each in attempts] == [False]
