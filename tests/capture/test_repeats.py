"""Blocks that are traced once: the graph is the one of all blocks, or all are traced."""

import gc
import logging

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from dqar_fx.capture import capture as capturing
from dqar_fx.capture.capture import capture
from dqar_fx.passes import expand_repeats
from dqar_fx.passes.support.collection import no_collection
from dqar_fx.passes.support.marks import AGAIN, Mark, find_marks
from tests.helpers.models import MAKERS, make_dit
from tests.helpers.repeated_block_models import WIDTH, Tower, compare, inputs
from tests.helpers.slow_cases import slow_but

COPIED = {"dit": 3, "pixart": 1, "sd3": 1, "flux": 2}
"""Of 5, 3, 4, and 2 and 3 blocks: the first one's input has another layout than the rest's."""


@pytest.fixture
def copied(monkeypatch):
    """How many blocks each capture copied; None where marks could not be taken out."""
    counts = []

    def counting(gm):
        counts.append(None)
        marks = [Mark.of(node) for node in find_marks(gm.graph)]
        taken = expand_repeats(gm)
        counts[-1] = sum(mark.role == AGAIN for mark in marks)
        return taken

    monkeypatch.setattr(capturing, "AFTER_TRACING", (counting,))
    return counts


@pytest.mark.parametrize("name", slow_but("pixart", of=MAKERS))
def test_graphs_of_models_are_those_of_all_blocks(name, copied):
    case = MAKERS[name]()
    assert compare(case.model, (), case.inputs(0)) is not None
    assert copied == [COPIED[name]]


def test_a_deeper_model_runs_no_more_blocks(monkeypatch):
    ran, forward = [], torch.nn.functional.scaled_dot_product_attention

    def counting(*args, **kwargs):
        ran.append(None)
        return forward(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    counts = []
    for layers in (3, 9):
        case = make_dit(layers=layers)
        ran.clear()
        with torch.no_grad():
            assert capturing.trace_repeats(case.model, (), case.inputs(0)) is not None
        counts.append(len(ran))
    assert counts == [2, 2]


KINDS = st.fixed_dictionaries(
    {
        "scale": st.sampled_from([1.0, 2.0]),
        "turn": st.booleans(),
        "double": st.booleans(),
        "pair": st.booleans(),
        "inner": st.integers(0, 2),
    }
)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_graphs_of_any_tower_are_those_of_all_blocks(data):
    kinds = data.draw(st.lists(KINDS, min_size=1, max_size=2))
    chosen = data.draw(st.lists(st.sampled_from(kinds), min_size=2, max_size=5))
    gains = [data.draw(st.sampled_from([1.0, 0.5])) for _ in chosen]
    model = Tower(chosen, gains)
    gm = compare(model.eval(), inputs())
    distinct = {tuple(sorted(each.items())) for each in chosen}
    repeats = len(distinct) < len(chosen) or any(each["inner"] == 2 for each in chosen)
    assert (gm is not None) == repeats


def test_blocks_that_share_parameters_are_copied(copied):
    model = Tower([{}] * 3)
    for block in model.blocks[1:]:
        block.linear.weight = model.blocks[0].linear.weight
    assert compare(model.eval(), inputs()) is not None
    assert copied == [2]


class Twice(Tower):
    def forward(self, x, context):
        return self.blocks[0](super().forward(x, context), context)


class PartTwice(Tower):
    def forward(self, x, context):
        return self.blocks[1].linear(super().forward(x, context))


class Outside(nn.Module):
    """Its blocks read a list that the model fills while it runs."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Leaning() for _ in range(3))

    def forward(self, x, context):
        NOTES[:] = [context * 2]
        for block in self.blocks:
            x = block(x)
        NOTES.clear()
        return x


NOTES: list = []


class Leaning(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.linear(x) + NOTES[0]


FALLS_BACK = {
    "a block called twice": lambda: Twice([{}] * 3),
    "a part called from elsewhere": lambda: PartTwice([{}] * 3),
    "a value that is no input": Outside,
}


@pytest.mark.parametrize("name", FALLS_BACK)
def test_all_blocks_are_traced_where_copies_would_not_be_certain(name, caplog):
    model = FALLS_BACK[name]().eval()
    with caplog.at_level(logging.INFO, "dqar_fx"):
        gm = capture(model, inputs(), {}).gm
    assert "all blocks of" in caplog.text
    assert torch.equal(gm(*inputs())[0], model(*inputs()))


class Told(Tower):
    """It tells each block its number in what all blocks hold."""

    def __init__(self):
        super().__init__([{}] * 3)
        for block in self.blocks:
            block.state = State()

    def forward(self, x, context):
        for i, block in enumerate(self.blocks):
            block.state.gain = float(i)
            x = block(x, context) * 2 + block.state.gain
        return x


class State:
    gain = 0.0


def test_a_block_is_described_when_it_is_called(copied):
    model = Told().eval()
    gm = capture(model, inputs(), {}).gm
    assert torch.equal(gm(*inputs())[0], model(*inputs()))
    assert copied == [0]


def test_an_error_of_the_model_is_the_models_own():
    class Broken(Tower):
        def forward(self, x, context):
            return super().forward(x, context) if x.sum() > 0 else x

    with pytest.raises(capturing.CaptureError, match="data-dependent"):
        capture(Broken([{}] * 3), inputs(), {})


def test_the_model_stays_as_it_is():
    model = Tower([{}] * 3).eval()
    kinds = [type(module) for module in model.modules()]
    capture(model, inputs(), {})
    assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("enabled", [True, False])
def test_no_collection_leaves_the_collector_as_it_was(enabled):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(KeyError), no_collection():
            {}[gc.isenabled()]
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
